// Pictures in: from files, the clipboard, a drag, a camera.

import { $ } from "./dom.js";

/** {blob, name, width, height} of a file, upright; no size where this browser cannot show it, as HEIC. */
export async function readPicture(file) {
  const name = file.name || "picture.png";
  const shown = file.type.startsWith("image/") || /\.(heic|heif|tiff?|avif)$/i.test(name);
  if (!shown) throw new Error(`${name} is no picture.`);
  try {
    const { width, height } = await createImageBitmap(file);
    return { blob: file, name, width, height };
  } catch {
    if (/hei[cf]|tiff?$/i.test(file.type || name)) return { blob: file, name, width: 0, height: 0 };
    throw new Error(`${name} cannot be read as a picture.`);
  }
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A photograph as a file, or null. A phone opens its own camera app, and so does what gives pages no camera. */
export async function photograph() {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) {
    $("shot").click(); // its change event brings the picture
    return null;
  }
  const media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 }, height: { ideal: 1080 } } });
  const dialog = $("camera");
  const video = $("video");
  video.srcObject = media;
  dialog.showModal();
  return new Promise((resolve) => {
    let shot = null;
    $("snap").onclick = async () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      shot = await new Promise((made) => canvas.toBlob(made, "image/jpeg", 0.92));
      dialog.close();
    };
    $("camera-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      media.getTracks().forEach((track) => track.stop());
      video.srcObject = null;
      resolve(shot && new File([shot], "photograph.jpg", { type: shot.type }));
    };
  });
}
