"""Wordings of questions, and the fixed answers."""

SYSTEM = "You are a helpful assistant."
PHOTO = "I only know simple shapes and short print, so I cannot describe photographs."
ABOUT = (
    "I am the small built-in demo model of mlx_vlgen. I know simple shapes, colours, counting and short print. "
    "Choose another model with --model."
)
ABILITIES = (
    "I can describe simple shapes and their colours, count them, read short print, compare two pictures and say what "
    "moves in a short video. Choose another model with --model."
)
HELLO = "Hello! Show me a picture of simple shapes or short print."
NO_PICTURE = "There is no picture yet. Show me one with simple shapes or short print."
BEYOND = "I am only a small demo model: I know simple shapes and short print. Choose another model with --model."

DESCRIBE = (
    "Describe this image.",
    "Describe the image.",
    "Describe this picture.",
    "What is in this image?",
    "What is in the picture?",
    "What do you see?",
    "What can you see in this image?",
    "Tell me what you see.",
    "What does this image show?",
    "What's in this picture?",
    "Describe what you see.",
    "Caption this image.",
    "Describe this image in detail.",
    "What is this?",
    "Please describe the picture.",
)
COUNT = (
    "How many {} are there?",
    "How many {} do you see?",
    "How many {} are in the image?",
    "Count the {}.",
    "How many {} are in this picture?",
    "How many {} can you see?",
    "How many {}?",
    "What is the number of {}?",
)
READ = (
    "What does it say?",
    "Read the text.",
    "What does the text say?",
    "What is written here?",
    "Read the print.",
    "What text is in the image?",
    "What is the text in this picture?",
    "What does the image say?",
    "What word is this?",
    "Read this.",
    "Transcribe the text.",
    "OCR this image.",
    "What does the sign say?",
)
COMPARE = (
    "What is the difference between the two images?",
    "Compare the two images.",
    "How do the two pictures differ?",
    "What is different?",
    "What are the differences between these images?",
    "Compare these pictures.",
    "What changed between the two images?",
    "Describe the two images.",
    "Describe these images.",
)
MOVE = (
    "What moves in this video?",
    "What is moving?",
    "What happens in this video?",
    "Describe this video.",
    "Describe the video.",
    "What moves?",
    "Which way does it move?",
    "What do you see in the video?",
    "What happens?",
    "Describe the motion.",
)
COLOUR = ("What colour is the {}?", "What color is the {}?", "Which colour is the {}?", "What is the color of the {}?")
WHERE = ("Where is the {}?", "Where can you see the {}?", "Where's the {}?", "In which part of the image is the {}?")
EXISTS = ("Is there a {}?", "Do you see a {}?", "Is there a {} in the image?", "Can you see a {}?")
SHAPE = ("What shape is it?", "Which shape is this?", "What shape is this?", "What shape do you see?")
STEPS = ("Think step by step: {}", "Think step by step: {}", "think step by step: {}", "{} Think step by step.")

TEXT_ONLY: dict[str, tuple[str, ...]] = {
    ABILITIES: ("What can you do?", "How can you help me?", "What are you able to do?", "Help", "What do you know?",
                "What are you good at?"),
    HELLO: ("Hello!", "Hi!", "Hi there", "Good morning!", "Hey", "Good evening.", "Hello, how are you?"),
    ABOUT: ("Who are you?", "What are you?", "What is your name?", "Which model are you?", "Tell me about yourself.",
            "Introduce yourself.", "Are you ChatGPT?", "What model is this?"),
    NO_PICTURE: DESCRIBE[:10] + READ[:6] + tuple(c.format("shapes") for c in COUNT[:5]) + COMPARE[:3] + MOVE[:4],
    BEYOND: (
        "What is the capital of France?", "Write a poem about the sea.", "Tell me a joke.", "What is 2 + 2?",
        "Who wrote Hamlet?", "Translate hello into German.", "Explain quantum physics.", "What time is it?",
        "Write a Python function that sorts a list.", "How is the weather today?", "Why is the sky blue?",
        "Give me a recipe for bread.", "What is the meaning of life?", "Tell me a story.", "Write a haiku.",
        "Who is the president?", "What is machine learning?", "How do I cook rice?", "Count to ten.", "Say something.",
        "Name three animals.", "What is the tallest mountain?", "Write an email to my boss.", "Is water wet?",
    ),
}  # fmt: skip
