"""What the built-in ear knows, and what it is taught not to know."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NAMES = (
    "red", "green", "blue", "yellow", "black", "white", "orange", "brown",
    "dog", "cat", "bird", "fish", "horse", "cow", "mouse", "rabbit",
    "yes", "no", "up", "down", "left", "right", "start", "stop", "open", "close",
    "big", "small", "hot", "cold", "day", "night", "sun", "moon", "water", "fire",
    "house", "garden", "table", "window", "apple", "bread", "coffee", "music",
    "hello", "goodbye", "please", "thanks", "mother", "father", "happy", "play", "help", "morning",
)  # fmt: skip
KNOWN = DIGITS + LETTERS + NAMES

# Taught as unknown; the words of FOREIGN are not taught at all, and measure whether the lesson was understood.
STRANGE = (
    "elephant", "bicycle", "picture", "mountain", "river", "doctor", "teacher", "paper", "pencil", "kitchen",
    "chair", "flower", "forest", "island", "winter", "summer", "purple", "silver", "golden", "finger",
    "shoulder", "hospital", "market", "village", "engine", "battery", "camera", "letter", "number", "question",
    "answer", "yesterday", "tomorrow", "always", "never", "maybe", "perhaps", "because", "between", "under",
    "above", "behind", "before", "after", "quickly", "slowly", "walking", "running", "jumping", "swimming",
    "singing", "dancing", "thinking", "sleeping", "cooking", "driving", "writing", "building", "breaking", "carry",
    "follow", "borrow", "forget", "remember", "believe", "country", "island", "planet", "rocket", "captain",
    "soldier", "farmer", "baker", "lawyer", "student", "children", "woman", "people", "brother", "sister",
    "uncle", "family", "neighbour", "friend", "enemy", "winner", "story", "chapter", "sentence", "language",
    "grammar", "history", "science", "nature", "weather", "thunder", "lightning", "rainbow", "cloud", "storm",
    "wind", "snow", "ice", "grass", "leaf", "branch", "root", "stone", "sand", "beach",
    "ship", "boat", "train", "truck", "plane", "bridge", "street", "corner", "church", "castle",
    "tower", "palace", "prison", "school", "office", "factory", "kingdom", "machine", "hammer", "needle",
    "button", "pocket", "jacket", "trousers", "blanket", "pillow", "mirror", "bottle", "glass", "spoon",
    "knife", "basket", "butter", "cheese", "chicken", "potato", "tomato", "onion", "pepper", "sugar",
    "lemon", "banana", "cherry", "melon", "tiger", "lion", "monkey", "snake", "spider", "turtle",
    "eagle", "pigeon", "donkey", "camel", "whale", "dolphin", "shark", "beetle", "violin", "guitar",
    "piano", "trumpet", "drum", "circus", "theatre", "painter", "dragon", "wizard", "giant", "treasure",
    "monday", "tuesday", "january", "october", "hundred", "thousand", "million", "twenty", "thirty", "seventy",
)  # fmt: skip
FOREIGN = (
    "computer", "telephone", "airport", "holiday", "umbrella", "chocolate", "sandwich", "library", "museum",
    "newspaper", "pyramid", "volcano", "crocodile", "kangaroo", "potion", "lantern", "velvet", "marble", "copper",
    "diamond", "shepherd", "merchant", "sailor", "carpenter", "december", "wednesday", "fourteen", "eleven",
    "quarter", "squirrel", "blossom", "harvest", "meadow", "valley", "desert", "compass", "anchor", "saddle",
    "feather", "ribbon",
)  # fmt: skip

ONES = ("", "one", "two", "three", "four", "five", "six")
UNKNOWN = "?"  # in a transcript, in the place of a word that is not known
