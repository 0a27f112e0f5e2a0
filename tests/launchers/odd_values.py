"""Values that a person might give on a command line: sound ones, ones at the edge, and ones that nobody could mean."""

import pathlib

# fmt: off
NUMBERS = (
    *("0", "1", "2", "3", "4", "8", "16", "100", "0.5", "1.0", "1e-3", "-1", "-0.0", "1.5", "2147483647", "2147483648"),
    *("nan", "-nan", "inf", "-inf", "Infinity", "1e308", "1e400", "-1e400", "5e-324", "9" * 30, "9" * 5000, "0x10"),
    *("1_000", "1,000", " 7 ", "٣", "²", "1e3", "True", "None", "two", "--1", "+1", "1/2", "10**6", "1 2"),
)
TEXTS = (
    *("", " ", "None", "null", "true", "0", "-", "--", "=", "a=b", "%s", "{}", "$x_1$", "\\", "'", '"', ",", ":"),
    *("é", "日本語", "🎲", "\u202e", "a\nb", "a\tb", "\x7f", "\x1b[31m", "\udcff", "x" * 300, "y" * 5000, "../..", "*"),
)
TUPLES = (
    *("()", "(1,)", "8", "8,8", "4,8,4", "(0,)", "(-1,)", "(1.5,)", "[4,4]", "(1,(2,))", "nan", "(nan,)", "('a',)"),
    *("{1:2}", "1,", "2147483647", "(2147483647, 2147483647)", "(100000,)*9"),
)
BOOLS = ("true", "false", "1", "0", "True", "yes", "", "2", "nan")
ADDRESSES = ("localhost:1", "a:1,b:2", "zzz", ":1", "a:", "a:99999", "[::1]:7")
RESERVING = tuple(f"{role}_resources" for role in ("replay", "learner", "evaluator", "actor", "host"))
RESOURCES = ("cpu=2", "memory=8Gi", "cpu=500m,memory=1.5G", "cpu=", "cpu=-1", "cpu=1,cpu=2", "gpu=1", "memory=8GB", "=")
NEEDS = (
    *('{"learner": {"GPU": 1}}', '{"actor": {"CPU": 0.5}, "replay": {"memory": 1}}', '{"learner": {"GPU": 1.5}}', "{}"),
    *('{"learner": 1}', '{"teacher": {}}', '{"actor": {"CPU": NaN}}', '{"actor": {"CPU": "1"}}', "[[]]", "{"),
)
SLICES = ("tpu-v6e-slice:2x2", "tpu-v4-podslice:2x2x2", "v5:4x4", "v5", "v5:", ":2x2", "v5:0x4", "v5:2x2x2x2", "v5:2×2")
RANGES = (
    *("learning_rate:log:1e-4:1e-2", "discount:linear:0.9:0.99", "learning_rate:step=0.1:0:1", "learning_rate:log:0:1"),
    *("x:log:1:2", "a:b:c", "learning_rate:log:1:nan", "learning_rate:log:2:1", ",", "discount:linear:0:2"),
)

ODD_AGENTS = ("", "impalla", "Impala", "dqn ", "agents.dqn", "日本")
ENVS = (
    *("CartPole-v1", "Catch-v0", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MaskedCartPole-v1", "Pong-v5"),
    *("HalfCheetah-v4", "CheetahRun-v1", "MiniGrid-MemoryS7-v0", "Counting-v0", "Cig-v1", "Ant-v5", "ALE/Pong-v5"),
    *("gymnasium:CartPole-v1", "gymnasium:Pendulum-v1", "binned:3:Pendulum-v1", "CartPole-v1,gymnasium:CartPole-v1"),
    *("", ",", "A,,B", "CartPole-v1,", "CartPole-v1,CartPole-v1", "CartPole-v1,Catch-v0", "cartpole-v1", "Pong-v55"),
    *("gymnasium:", "gymnasium::", "gymnasium:a:b:c", "gymnasium:no_such_module:X-v0", "gymnasium:CartPole", "gym:x"),
    *("gymnasium:os:X-v0", "gymnasium:../x:Y-v0", "gymnasium:CartPole-v99", "gymnasium:é:日-v0", "gymnasium:json:A-v1"),
    *("binned:", "binned:3", "binned:3:", "binned:4:Pendulum-v1", "binned:-3:Pendulum-v1", "binned:nan:Pendulum-v1"),
    *("binned:99999999999:Pendulum-v1", "binned:4095:Pendulum-v1", "binned:4097:Pendulum-v1", "binned:3:CartPole-v1"),
    *("binned:²:Pendulum-v1", "binned:3:binned:3:Pendulum-v1", "binned:3:gymnasium:Pendulum-v1"),
    *(f"gymnasium:tests.environments.shaky:constructor-{how}-v0" for how in ("RuntimeError", "SystemExit", "Odd")),
)
# Modules that fail to give an environment: name -> source. `write_modules` writes them.
MODULES = {
    "shoal_odd_raises": "raise RuntimeError('two\\nlines')",
    "shoal_odd_exits": "import sys; sys.exit(0)",
    "shoal_odd_divides": "1 / 0",
    "shoal_odd_interrupts": "raise KeyboardInterrupt",
    "shoal_odd_syntax": "def (:",
    "shoal_odd_bytes": "\x00",
    "shoal_odd_empty": "",
    "shoal_odd_warns": "import warnings; warnings.simplefilter('error'); warnings.warn('of its own')",
}
SPACES = {
    "ObservationNone": "observation_space = None; action_space = spaces.Discrete(2)",
    "ActionNone": "observation_space = spaces.Box(-1, 1, (2,)); action_space = None",
    "Neither": "pass",
    "Wordy": "observation_space = 'Box'; action_space = 2",
    "Text": "observation_space = spaces.Text(9); action_space = spaces.Discrete(2)",
    "Empty": "observation_space = spaces.Box(-1, 1, (0,)); action_space = spaces.Discrete(2)",
    "TupleActions": "observation_space = spaces.Box(-1, 1, (2,)); action_space = spaces.Tuple([spaces.Discrete(2)])",
    "Unbounded": "observation_space = spaces.Box(-1, 1, (2,)); action_space = spaces.Box(-np.inf, np.inf, (2,))",
    "One": "observation_space = spaces.Box(-1, 1, (2,)); action_space = spaces.Discrete(1)",
    "Tiny": "observation_space = spaces.Box(0, 255, (7, 7), np.uint8); action_space = spaces.Discrete(2)",
    "Wide": "observation_space = spaces.Discrete(10**9); action_space = spaces.Discrete(2)",
}
SPACES_MODULE = "shoal_odd_spaces"
ENVS += tuple(f"gymnasium:{module}:X-v0" for module in MODULES)
ENVS += tuple(f"gymnasium:{SPACES_MODULE}:{name}-v0" for name in SPACES)

FOLDER = "<folder>"  # stands for the folder of a command line
PATHS = (
    *(f"{FOLDER}/new", f"{FOLDER}/new/and/deeper", f"{FOLDER}/file", f"{FOLDER}/file/below", FOLDER),
    *(f"{FOLDER}/é 日本", f"{FOLDER}/\udcff", f"{FOLDER}/a\nb", f"{FOLDER}/loop/x"),
    *("gs://bucket/run", "s3://", "file:///dev/null/x", "zz://a/b", "memory://", "a::b://", "://", "hdfs://a/b"),
    *("~nouser/x", "~nouser", "", "/dev/null/x", "/proc/x"),
    *(f"{FOLDER}/{'z' * 300}", f"{FOLDER}/{'z/' * 3000}"),
)
PICTURES = ("a.png", "a.svg", "a.pdf", "a.PNG", "a", "a.txt", "a.pgf", ".png", "file/x.png", "no/x.png", "a.")
VIDEOS = ("a.gif", "a.gif", "a.GIF", "a.mp4", "a.png", "gif", "no/x.gif", "file/x.gif", "loop/x.gif", "é\n.gif")
# Flags that give other flags a meaning; a line may get one of these tuples.
SURROUNDINGS = (
    ("--population=2", "--tune=learning_rate:log:1e-4:1e-2"),
    ("--population=3", "--population_mode=vmap", "--tune=learning_rate:log:1e-4:1e-2"),
    ("--travels=gradients",),
    ("--placement=processes",),
    ("--placement=ray",),
    ("--placement=serial", "--carrier=local"),
    ("--carrier=local",),
    ("--num_replay_servers=2", "--num_actors=4"),
)

JSON = (
    *(None, [], {}, "", "x", 0, 1, -1, 3, 10**30, 0.5, 1e308, float("nan"), float("inf"), True, [1], {"a": None}),
    *([[[]]], "a2c", "dqn", "Catch-v0", "binned:3:Pendulum-v1"),
)
FILES = (
    *(b"", b"null", b"[]", b"{}", b"7", b'"x"', b"{", b"nan", b"\xff\xfe\x00", b'{"config": {}}', b"\x00" * 1000),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"seed": 1e999, "config": {}}', b'{"agent": "a2c", "config": {}}'),
)
COLUMNS = "env_steps,learner_steps,wall_seconds,episodes,return_mean,return_std"
OTHER_COLUMNS = ("env_steps,return_mean", "a,b,c", "", "env_steps", COLUMNS.replace(",", ";"))
CELLS = (
    *("0", "1", "7", "100", "250", "nan", "inf", "-inf", "-5", "1e308", "-1e308", "1e400", "x", "", "é", "\x00"),
    "9" * 400,
)
# fmt: on


def write_modules(folder: pathlib.Path) -> None:
    """Writes the modules that fail to give an environment, and a module of environments with odd spaces."""
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    classes = (
        f"class {name}(gymnasium.Env):\n    {body}\ngymnasium.register('{name}-v0', {name})\n"
        for name, body in SPACES.items()
    )
    imports = "import gymnasium\nimport numpy as np\nfrom gymnasium import spaces\n"
    (folder / f"{SPACES_MODULE}.py").write_text(imports + "".join(classes))
