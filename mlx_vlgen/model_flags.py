"""Flags of the commands that are about models and what lies on the disk, and answer nothing."""

from functools import partial

from .flags import Parser, at_least


def cache_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s [--clear]",
        description="What chats computed of their talks, on disk, so that the next question costs only what is new,\n"
        "also after --resume. The oldest goes when it takes more than a quarter of the free space, or 30 GiB. It can\n"
        "be deleted at any time: what is missing is computed again.",
    )
    parser.add_argument("--clear", action="store_true", help="delete all of it")
    parser.add_argument("--folder", metavar="DIR", help="the disk= of a PrefixCache (default: the chats' own)")
    return parser


def models_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s [MODEL ...] [--json]",
        description="The models in the Hugging Face cache and the built-in one: family, size on disk, bits of\n"
        "quantized weights, what they take beside text, and how long a talk may become, in tokens, in the\n"
        "memory that is free now. No weights are read and no network is used.",
    )
    parser.add_argument("model", nargs="*", metavar="MODEL", help="folders or Hub ids (default: all that are here)")
    parser.add_argument("--json", action="store_true", help="an object a line")
    return parser


def pull_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s MODEL [--revision NAME]",
        description="Download what a model needs into the Hugging Face cache, unless it is there; prints its folder.",
    )
    parser.add_argument("model", metavar="MODEL", help="an id on the Hugging Face Hub, owner/name")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    return parser


def rm_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s MODEL ... [--yes]",
        description="Delete models from the Hugging Face cache, all revisions, after a question.",
    )
    parser.add_argument("model", nargs="+", metavar="MODEL", help="as `mlx-vlgen models` lists it")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    return parser


def plan_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage='%(prog)s MODEL --machines "2x M3 Ultra 192GB, thunderbolt" [--context N] [--batch N] [--json]',
        description="What a model needs on machines that are not here, and how fast it would be there: on one, cut\n"
        "over all of them (tensor), by layers (pipeline), or whole on each (data). Computed from its\n"
        "configuration; no weights are read. docs/scaling.md has the formulas, and how far they are off.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a Hub id, or the path of a config.json alone")
    parser.add_argument("--machines", required=True, metavar="TEXT",
                        help="COUNTx CHIP MEMORY[, LINK], as \"4x M4 Max 128GB, 10GbE\" or \"2x H100\"; a chip that is "
                        "not known as name=bandwidthGB/s,TFLOPS,memoryGB")  # fmt: skip
    parser.add_argument(
        "--context", type=partial(at_least, 1), default=4096, metavar="N", help="tokens of a row (default 4096)"
    )
    parser.add_argument(
        "--prompt", type=partial(at_least, 1), default=512, metavar="N", help="of them text asked (default 512)"
    )
    parser.add_argument("--picture", default="1024x1024", metavar="WxH", help="pixels of one (default 1024x1024)")
    parser.add_argument("--batch", type=partial(at_least, 1), default=8, metavar="N", help="rows at once (default 8)")
    parser.add_argument("--quantize", type=int, metavar="BITS", help="as if its text layers had so many bits")
    parser.add_argument("--json", action="store_true", help="one object: bytes, seconds, tokens a second")
    return parser


def verify_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s MODEL [--image FILE ...] [--audio FILE ...] [--dtype TYPE] [--no-torch]",
        description="Answers text, pictures and sound, as far as the model takes them, here and in transformers,\n"
        "where torch is installed, and compares token ids, pixels, features of sound, logits and tokens; then\n"
        "compares each answer with itself in a batch, in small chunks, and over a reused prefix. Prints a report\n"
        "in Markdown; exits with 1 where something differs.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or Hub id; not a quantized one, to compare with torch")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="two pictures (default: drawn ones)")
    parser.add_argument("--audio", nargs="+", default=[], metavar="FILE",
                        help="two clips of sound of unlike length (default: 1.3 and 2.5 seconds of tones)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="of both (default float32; for bfloat16 differences are told and not judged)")  # fmt: skip
    parser.add_argument("--torch-device", default="cpu", metavar="NAME", help="cpu (the default), mps or cuda")
    parser.add_argument("--no-torch", action="store_true", help="compare the checkpoint with itself only")
    return parser
