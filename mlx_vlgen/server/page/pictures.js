// Pictures and sounds in: from files, the clipboard, a drag, a camera.

import { $ } from "./dom.js";

const READ = "PNG, JPEG, WebP, GIF and HEIC can be sent.";
const SOUND = /\.(wav|mp3|m4a|aac|flac|og[ga]|opus|aiff?)$/i;

/** Why a model cannot be asked about a picture or a sound, or null. takes(kind): whether it takes "image" or "audio". */
export function refusal({ name, sound }, takes) {
  if (takes(sound ? "audio" : "image")) return null;
  const [what, verb] = sound ? ["a sound", "hear"] : ["no sound", "see"];
  return `${name} is ${what}, and this model does not ${verb}. Ask one that does, or leave it out.`;
}

/** A file as a picture, or as a sound: {blob, name, sound: true}. */
export async function readFile(file, takes) {
  const sound = file.type.startsWith("audio/") || SOUND.test(file.name);
  const refused = refusal({ name: file.name || "picture.png", sound }, takes);
  if (refused) throw new Error(refused);
  if (!sound) return readPicture(file, takes("audio"));
  if (!file.size) throw new Error(`${file.name} is empty.`);
  return { blob: file, name: file.name, sound };
}

/** {blob, name, width, height} of a file, upright; no size where this browser cannot show it, as HEIC. */
async function readPicture(file, hears) {
  const name = file.name || "picture.png";
  const shown = file.type.startsWith("image/") || /\.(heic|heif|tiff?|avif)$/i.test(name);
  if (!shown) throw new Error(`${name} is no picture${hears ? " and no sound" : ""}. ${READ}`);
  try {
    const { width, height } = await createImageBitmap(file);
    return { blob: file, name, width, height };
  } catch {
    if (/hei[cf]|tiff?$/i.test(file.type || name)) return { blob: file, name, width: 0, height: 0 };
    throw new Error(`${name} cannot be read as a picture. ${READ}`);
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

/** A photograph as a file, or null. A phone opens its camera app, and so does what gives pages no camera. */
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
