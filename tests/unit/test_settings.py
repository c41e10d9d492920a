"""Settings: what every variable takes and refuses, and that no message ever holds a password."""

import hashlib
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.config.kv_endpoints import mask_password
from app.config.route_values import NAME_RULE
from app.config.routes_source import RoutesSource
from app.config.settings import Settings, load_settings
from app.config.shown_settings import shown_setting, shown_settings
from app.errors import SettingsError
from tests.support.malformed import ODD_NAMES

FIELDS = msgspec.structs.fields(Settings)
VARIABLES = [field.name.upper() for field in FIELDS]

DEFAULTS = {
    "MODEL_REF": "simulated",
    "MAX_CONCURRENCY": 10,
    "KV_ENDPOINTS": (),
    "QUEUE_SIZE": 0,
    "QUEUE_TIMEOUT_MS": 1000,
    "SIMULATED_LATENCY_MS": 100,
    "SIMULATED_TOKEN_MS": 0,
    "BACKENDS": (),
    "BACKEND_PROTOCOL": "openai",
    "INITIAL_HEALTH": "unknown",
    "ROUTES_FILE": None,
    "MAX_BODY_BYTES": 4 * 1024 * 1024,
    "MAX_UPLOAD_BYTES": 1024 * 1024 * 1024,
    "MAX_HEADER_BYTES": 65536,
    "MAX_HEADER_FIELDS": 100,
    "CORS_ORIGINS": (),
    "WEB_CONCURRENCY": 3,  # the cores that the tests give
    "BIND": "0.0.0.0:8080",
    "ADMIN_BIND": None,
    "TLS_CERT_FILE": None,
    "TLS_KEY_FILE": None,
    "TLS_CLIENT_CA_FILE": None,
    "GRACEFUL_TIMEOUT_S": 30,
    "KEEPALIVE_S": 75,
    "STALL_TIMEOUT_S": 30,
    "UPLOAD_TIMEOUT_S": 300,
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "json",
    "ACCESS_LOG": "errors",
    "TRACE_SAMPLE_RATIO": 0.0,
    "POD_NAME": None,
    "PROMETHEUS_MULTIPROC_DIR": None,
    "KEYS_FILE": None,
    "JWT_ISSUER": None,
    "JWT_AUDIENCE": (),
    "JWT_JWKS": None,
    "JWT_ALGORITHMS": (),
    "JWT_HMAC_KEY_FILE": None,
    "JWT_LEEWAY_S": 30,
    "JWT_TENANT_CLAIM": "sub",
    "JWT_MODELS_CLAIM": None,
    "TENANT_HEADER": None,
    "TRUSTED_PROXIES": (),
    "ADMIN_KEY_SHA256": (),
}

# Variable, least, most, and the bounds as a message names them.
NUMBERS = [
    ("MAX_CONCURRENCY", 1, 1_000_000, "1 to 1000000"),
    ("QUEUE_SIZE", 0, 100_000, "0 to 100000"),
    ("QUEUE_TIMEOUT_MS", 1, 3_600_000, "1 to 3600000"),
    ("SIMULATED_LATENCY_MS", 0, 3_600_000, "0 to 3600000"),
    ("SIMULATED_TOKEN_MS", 0, 3_600_000, "0 to 3600000"),
    ("MAX_BODY_BYTES", 1, 1_073_741_824, "1 to 1073741824"),
    ("MAX_UPLOAD_BYTES", 1, 1_099_511_627_776, "1 to 1099511627776"),
    ("MAX_HEADER_BYTES", 1024, 1_048_576, "1024 to 1048576"),
    ("MAX_HEADER_FIELDS", 10, 10_000, "10 to 10000"),
    ("WEB_CONCURRENCY", 1, 32, "1 to 32"),
    ("GRACEFUL_TIMEOUT_S", 1, 86_400, "1 to 86400"),
    ("KEEPALIVE_S", 0, 3600, "0 to 3600"),
    ("STALL_TIMEOUT_S", 1, 3600, "1 to 3600"),
    ("UPLOAD_TIMEOUT_S", 1, 3600, "1 to 3600"),
]

WORDS = [
    ("LOG_LEVEL", ("debug", "info", "warning", "error", "critical"), "debug, info, warning, error or critical"),
    ("LOG_FORMAT", ("json", "console"), "json or console"),
    ("BACKEND_PROTOCOL", ("openai", "v2"), "openai or v2"),
    ("INITIAL_HEALTH", ("unknown", "healthy"), "unknown or healthy"),
    ("ACCESS_LOG", ("off", "errors", "all"), "off, errors or all"),
]

NO_ADDRESSES = ["8080", "host", ":8080", "h:", "h:0", "h:65536", "h:-1", "h:http", "h:\uff18\uff10", "unix:/run/x"]
NO_ADDRESSES += ["::1:80", "a b:80", "-h:80", "h_-:80", "[xyz]:80", "h:80,h:81", f"{'x' * 64}:80", f"{'x.' * 127}:80"]
ADDRESSES = ["0.0.0.0:8080", "localhost:1", "[::]:65535", "[::1]:80", "router-0.router.svc.cluster.local:8080"]
ADDRESS_WORDS = "host:port or [ipv6]:port"

KV_WORDS = "comma-separated host, host:port, redis:// or rediss:// URLs"

# Text, and why it is refused, in the message's own words.
NO_ENDPOINTS = [
    ("h:0", "port"),
    ("h:65536", "port"),
    ("h:", "port"),
    ("h:x", "port"),
    ("::1:6379", "host"),
    ("a b", "host"),
    ("h/1", "host"),
    (":6379", "host"),
    ("redis://", "host"),
    ("redis://u:p@", "host"),
    ("redis://h?db=1", "host"),
    ("http://h", "scheme"),
    ("REDIS://h", "scheme"),
    ("unix:///run/redis", "scheme"),
    ("redis://h/x", "database"),
    ("redis://h/1/2", "database"),
    ("a, b, http://c", "scheme"),
]

# An accepted endpoint, and how an answer shows it.
MASKED = [
    ("redis://user:SECRET@h:6379/0", "redis://user:***@h:6379/0"),
    ("rediss://user:SECRET@h", "rediss://user:***@h"),
    ("redis://:SECRET@h", "redis://:***@h"),
    ("redis://user:SEC@RET@h:1", "redis://user:***@h:1"),
    ("redis://user:SEC:RET@h:1", "redis://user:***@h:1"),
    ("redis://user:SECRET@[::1]:6379", "redis://user:***@[::1]:6379"),
    ("redis://user:@h", "redis://user:***@h"),
    ("redis://us@er:SECRET@h", "redis://us@er:***@h"),
    ("redis://us%40er:SEC%2CRET@h", "redis://us%40er:***@h"),
    ("redis://user@h:6379", "redis://user@h:6379"),
    ("redis://h:6379/1", "redis://h:6379/1"),
    ("h:6379", "h:6379"),
    ("[::1]:6379", "[::1]:6379"),
]

# Rejected for whatever reason, with a password inside.
PASSWORDS = [
    "user:SECRET@h",
    "user:SECRET@h:6379",
    "user:SECRET@h:6379/1",
    ":SECRET@h",
    "h:SECRET@",
    "http://user:SECRET@h",
    "://user:SECRET@h",
    "redis:user:SECRET@h",
    "redis:/user:SECRET@h",
    "user:SECRET://x@h",
    "redis://user:SECRET@h:0",
    "redis://user:SECRET@h/x",
    "redis://user:SECRET@h?x=1",
    "redis://user:SECRET@",
    "redis://user:pw/SECRET@h",
    "redis://user:SECRET/pw@h",
    "redis://user:pw@SECRET@h:0",
    "redis://user:SECRET,pw@h",
    "redis://user:SECRET pw@h:0",
    "redis://user:SECRET\npw@h:0",
    "h, redis://user:SECRET@a, user:SECRET@b, h:0",
    "redis://user:SECRET@h, nonsense:x",
]


def load(**environ: str) -> Settings:
    """The settings of this environment, on a machine of 3 cores."""
    return load_settings(environ, 3)


def value(variable: str, text: str) -> object:
    """What a variable set to this text becomes."""
    return getattr(load(**{variable: text}), variable.lower())


def refusal(**environ: str) -> str:
    """The one line that says why this environment is refused."""
    with pytest.raises(SettingsError) as caught:
        load(**environ)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def test_every_setting_has_a_default_here() -> None:
    """A setting that is added is added to these tables too."""
    assert set(DEFAULTS) == set(VARIABLES)


@pytest.mark.parametrize("variable", VARIABLES)
def test_unset_means_the_default(variable: str) -> None:
    """Without its variable, a setting has its documented default."""
    assert getattr(load(), variable.lower()) == DEFAULTS[variable]


@pytest.mark.parametrize("blank", ["", " ", "\t \n"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_blank_means_unset(variable: str, blank: str) -> None:
    """A variable that is set to nothing, as YAML templates leave them, counts as unset."""
    assert value(variable, blank) == DEFAULTS[variable]


def test_settings_are_frozen() -> None:
    """Settings can't change while the server runs."""
    settings = load()
    with pytest.raises(AttributeError):
        settings.max_concurrency = 1  # type: ignore[misc]


def test_other_variables_are_ignored() -> None:
    """What the environment holds besides is nobody's business."""
    assert load(PATH="/bin", max_concurrency="5", MAX_CONCURRENCY_="6") == load()


@pytest.mark.parametrize(("variable", "least", "most", "_"), NUMBERS)
def test_number_takes_its_bounds(variable: str, least: int, most: int, _: str) -> None:
    """Both bounds belong to the range, and white space around a number does no harm."""
    assert value(variable, str(least)) == least
    assert value(variable, f" {most}\n") == most


@pytest.mark.parametrize(("variable", "least", "most", "bounds"), NUMBERS)
def test_number_out_of_bounds_is_refused(variable: str, least: int, most: int, bounds: str) -> None:
    """A number past either bound is refused in a line that names variable, value and bounds."""
    for text in (str(least - 1), str(most + 1), "9" * 50):
        assert refusal(**{variable: text}) == f"{variable}='{text}': must be {bounds}"


@pytest.mark.parametrize(
    "text", ["x", "1.5", "0x10", "1_000", "+5", "05", "1 2", "true", "null", "nan", "\u0663", "[1]"]
)
@pytest.mark.parametrize(("variable", "_", "__", "bounds"), NUMBERS)
def test_no_number_is_refused(variable: str, _: int, __: int, bounds: str, text: str) -> None:
    """What is not a plain whole number is refused, not guessed at."""
    assert refusal(**{variable: text}) == f"{variable}={text!r}: must be {bounds}"


@pytest.mark.parametrize(("variable", "words", "allowed"), WORDS)
def test_word_must_be_one_of_the_list(variable: str, words: tuple[str, ...], allowed: str) -> None:
    """A setting with named choices takes each of them, as written, and refuses the rest."""
    assert [value(variable, word) for word in words] == list(words)
    for text in (words[0].upper(), f"{words[0]}x", "x\ny", "1"):
        assert refusal(**{variable: text}) == f"{variable}={text!r}: must be {allowed}"


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (5, 5), (32, 32), (200, 32)])
def test_workers_default_to_the_cores(cores: int, workers: int) -> None:
    """Without WEB_CONCURRENCY there is a worker a core, at most 32; with it, as many as it says."""
    assert load_settings({}, cores).web_concurrency == workers
    assert load_settings({"WEB_CONCURRENCY": "2"}, cores).web_concurrency == 2


@pytest.mark.parametrize(
    "text", ["m", "/models/m", "meta/Llama-3.1:8b", "a b", "x" * 200, "...", ".m", "a/b/c", "a/.b/c..", "org/..."]
)
def test_model_ref_takes_printable_text(text: str) -> None:
    """A model's name is 1 to 200 printable ASCII characters."""
    assert value("MODEL_REF", text) == text


@pytest.mark.parametrize("text", ["x" * 201, "é", "a\nb", "a\x00b", "\udcff", *ODD_NAMES])
def test_model_ref_refuses_the_rest(text: str) -> None:
    """A name that would not survive logs, labels and paths is refused, and the message says what would be right."""
    assert refusal(MODEL_REF=text) == f"MODEL_REF={text!r}: must be {NAME_RULE}"


def test_metrics_directory_is_an_absolute_path() -> None:
    """A relative directory would depend on where the server is started."""
    assert value("PROMETHEUS_MULTIPROC_DIR", "/run/metrics") == "/run/metrics"
    message = refusal(PROMETHEUS_MULTIPROC_DIR="metrics")
    assert message.startswith("PROMETHEUS_MULTIPROC_DIR='metrics': must be a directory of the router's own")
    assert "absolute" in message


@pytest.mark.parametrize(
    ("environ", "pod"),
    [
        ({}, None),
        ({"HOSTNAME": "h"}, "h"),
        ({"POD_NAME": "p"}, "p"),
        ({"POD_NAME": "p", "HOSTNAME": "h"}, "p"),
        ({"POD_NAME": " ", "HOSTNAME": "h"}, "h"),
        ({"POD_NAME": "null"}, "null"),
    ],
)
def test_pod_is_pod_name_else_hostname(environ: dict[str, str], pod: str | None) -> None:
    """POD_NAME says which pod answers; HOSTNAME serves where it is unset."""
    assert load(**environ).pod_name == pod


def test_tls_files_are_absolute_and_belong_to_a_certificate() -> None:
    """A path that depends on the folder of the start is refused, and so are a key and an authority by themselves."""
    settings = load(TLS_CERT_FILE="/c", TLS_KEY_FILE="/k", TLS_CLIENT_CA_FILE="/a")
    assert (settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file) == ("/c", "/k", "/a")
    assert refusal(TLS_CERT_FILE="c").startswith("TLS_CERT_FILE='c': must be the absolute path of a PEM file")
    for variable in ("TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"):
        assert refusal(**{variable: "/x"}) == f"{variable}='/x': must be set only together with TLS_CERT_FILE"


@pytest.mark.parametrize("text", ADDRESSES)
def test_address_to_listen_on(text: str) -> None:
    """BIND and ADMIN_BIND take a host or a bracketed IPv6 address, and a port."""
    assert load(BIND=text).binds == [text]
    settings = load(BIND="h:9", ADMIN_BIND=text)
    assert settings.binds == ["h:9", text]
    assert settings.admin_port == text.rpartition(":")[2]


@pytest.mark.parametrize("variable", ["BIND", "ADMIN_BIND"])
@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_no_address_to_listen_on(variable: str, text: str) -> None:
    """What gunicorn could not listen on is refused at once."""
    message = refusal(**{variable: text})
    assert message.startswith(f"{variable}={text!r}: must be {ADDRESS_WORDS}")
    assert ("port is missing" in message) == (":" not in text)


def test_without_admin_bind_there_is_one_listener() -> None:
    """ADMIN_BIND unset: everything on BIND."""
    settings = load(BIND="h:1")
    assert (settings.binds, settings.admin_port) == (["h:1"], None)


@pytest.mark.parametrize("admin", ["0.0.0.0:8080", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1:08080"])
def test_two_listeners_need_two_ports(admin: str) -> None:
    """Listeners are told apart by their port, however it is written."""
    assert admin in refusal(ADMIN_BIND=admin)


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("h", ("h",)),
        ("kv-0.kv.default.svc.cluster.local", ("kv-0.kv.default.svc.cluster.local",)),
        ("h:6379", ("h:6379",)),
        ("10.0.0.1:1", ("10.0.0.1:1",)),
        ("[::1]", ("[::1]",)),
        ("[fe80::1]:65535", ("[fe80::1]:65535",)),
        ("redis://h", ("redis://h",)),
        ("redis://h/", ("redis://h/",)),
        ("redis://h:6379/15", ("redis://h:6379/15",)),
        ("rediss://user:pw@[::1]:6379/0", ("rediss://user:pw@[::1]:6379/0",)),
        (" a ,\tb:1,, [::1]:2\n,redis://c ,", ("a", "b:1", "[::1]:2", "redis://c")),
        (",", ()),
        (" , ,", ()),
    ],
)
def test_kv_endpoints(text: str, endpoints: tuple[str, ...]) -> None:
    """KV_ENDPOINTS is a list of hosts and URLs, in order, blanks trimmed and empty places dropped."""
    assert value("KV_ENDPOINTS", text) == endpoints


@pytest.mark.parametrize(("text", "reason"), NO_ENDPOINTS)
def test_no_kv_endpoint(text: str, reason: str) -> None:
    """One bad endpoint refuses the list, with the reason."""
    message = refusal(KV_ENDPOINTS=text)
    assert message.startswith("KV_ENDPOINTS=")
    assert KV_WORDS in message
    assert reason in message.rpartition(KV_WORDS)[2]


@pytest.mark.parametrize(("endpoint", "shown"), MASKED)
def test_password_is_masked_in_answers(endpoint: str, shown: str) -> None:
    """An answer shows everything of an endpoint but its password."""
    assert mask_password(endpoint) == shown
    assert load(KV_ENDPOINTS=f"first, {endpoint}").kv_endpoints_masked == ["first", shown]


@pytest.mark.parametrize("text", PASSWORDS)
def test_password_is_in_no_message(text: str) -> None:
    """However wrong an endpoint is, the message about it does not show its password."""
    assert "SECRET" not in refusal(KV_ENDPOINTS=text)


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name not in ("KV_ENDPOINTS", "POD_NAME")])
@pytest.mark.parametrize("text", ["redis://user:SECRET@h:1:é", "user:SECRET@é"])
def test_password_in_the_wrong_variable_is_in_no_message(variable: str, text: str) -> None:
    """Somebody who mixes variables up does not find the password in the log."""
    assert "SECRET" not in refusal(**{variable: text})


@example(user="user", before="", after="\n")
@example(user="us@er", before="", after="")
@example(user="user", before="", after=",")
@given(
    user=st.text("ab@%", max_size=4),
    before=st.text("@:/,[] \n?#0a", max_size=6),
    after=st.text("@:/,[] \n?#0a", max_size=6),
)
def test_password_never_shows(user: str, before: str, after: str) -> None:
    """Whatever a URL's password is made of, it shows neither in answers nor in messages."""
    text = f"redis://{user}:{before}SECRET{after}@h:6379/0"
    try:
        shown = str(load(KV_ENDPOINTS=text).kv_endpoints_masked)
    except SettingsError as error:
        shown = str(error)
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    "environ",
    [{"POD_NAME": "pod\udcff"}, {"HOSTNAME": "pod\udcff"}, {"KV_ENDPOINTS": "redis://us\udcffer@h"}],
    ids=lambda environ: next(iter(environ)),
)
def test_what_loads_can_be_answered(environ: dict[str, str]) -> None:
    """Bytes that are no text (Python reads them as lone surrogates) never become a setting that no JSON can hold."""
    try:
        settings = load(**environ)
    except SettingsError:
        return
    msgspec.json.encode([settings.pod_name, settings.kv_endpoints_masked])


_ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)  # lone surrogates too
_NEARLY_RIGHT = st.text("redis:/@,[].0123456789ab -_\n", max_size=30)


@given(st.dictionaries(st.sampled_from([*VARIABLES, "HOSTNAME"]), _ANY_TEXT | _NEARLY_RIGHT, max_size=4))
def test_any_text_loads_or_is_refused_in_one_line(environ: dict[str, str]) -> None:
    """Whatever the environment holds: settings, or one line that starts with the variable at fault."""
    try:
        load_settings(environ, 3)
    except SettingsError as error:
        message = str(error)
    else:
        return
    assert message.splitlines() == [message]
    assert message.startswith(tuple(f"{variable}=" for variable in environ))


@pytest.mark.parametrize(
    ("text", "backends"),
    [
        ("http://a", ("http://a",)),
        (" http://a:8000/ ,https://[::1]:9/v/x/,", ("http://a:8000", "https://[::1]:9/v/x")),
        (",", ()),
    ],
)
def test_backends(text: str, backends: tuple[str, ...]) -> None:
    """BACKENDS is a list of URLs, without a slash at their end."""
    assert value("BACKENDS", text) == backends


@pytest.mark.parametrize(
    "text",
    ["a:8000", "ftp://a", "http://", "http://a:0", "http://256.1.1.1", "http://a?x", "http://a//b", "http://a#b"],
)
def test_no_backends(text: str) -> None:
    """What no model server can be at is refused, with the reason."""
    message = refusal(BACKENDS=f"http://ok,{text}")
    shown = re.sub("[?#].*", lambda query: f"{query[0][0]}***", text)
    assert message.startswith(f"BACKENDS='http://ok,{shown}': must be comma-separated http:// or https:// URLs (")


def test_backend_holds_no_password() -> None:
    """A password in a URL would show in metrics; the message shows where it belongs, and not it."""
    message = refusal(BACKENDS="http://user:SECRET@a")
    assert "SECRET" not in message
    assert "credential_file" in message


@pytest.mark.parametrize("text", ["routes.toml", "/etc/routes.yaml", "r.yml", "r.json"])
def test_routes_file(text: str) -> None:
    """ROUTES_FILE tells its form by its ending."""
    assert value("ROUTES_FILE", text) == text
    assert "the ending determines the format" in refusal(ROUTES_FILE="routes.conf")


def test_routes_come_from_one_place() -> None:
    """ROUTES_FILE beside BACKENDS: nobody could say which holds."""
    assert "must not be set beside BACKENDS" in refusal(ROUTES_FILE="r.toml", BACKENDS="http://a")


@pytest.mark.parametrize(("text", "ratio"), [("0", 0.0), ("1", 1.0), ("0.25", 0.25), ("1e-3", 0.001)])
def test_trace_sample_ratio(text: str, ratio: float) -> None:
    """A share is a number from 0 to 1."""
    assert load(TRACE_SAMPLE_RATIO=text).trace_sample_ratio == ratio


@pytest.mark.parametrize("text", ["-0.1", "1.1", "nan", "inf", "50%", "all"])
def test_no_trace_sample_ratio(text: str) -> None:
    """Anything else is refused."""
    assert refusal(TRACE_SAMPLE_RATIO=text) == f"TRACE_SAMPLE_RATIO={text!r}: must be 0 to 1"


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("https://app.example.com", ("https://app.example.com",)),
        (
            "https://a.example, http://localhost:3000,http://[::1]:8080",
            ("https://a.example", "http://localhost:3000", "http://[::1]:8080"),
        ),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",)),
    ],
)
def test_cors_origins(text: str, origins: tuple[str, ...]) -> None:
    """A star, or a list of origins as browsers send them."""
    assert load(CORS_ORIGINS=text).cors_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        *("app.example.com", "https://app.example.com/", "https://app.example.com/x", "HTTPS://app.example.com"),
        *(
            "https://App.example.com",
            "https://app.example.com:443",
            "http://app.example.com:80",
            "null",
            "*.example.com",
        ),
        *("https://*.example.com", "*, https://app.example.com", "https://", "https://a b"),
    ],
)
def test_no_cors_origins(text: str) -> None:
    """What no browser ever sends as Origin is refused: it would allow nothing."""
    assert refusal(CORS_ORIGINS=text).startswith(f"CORS_ORIGINS={text!r}: must be * or comma-separated origins")


def test_server_that_is_given_twice_is_one_endpoint() -> None:
    """With the root and without, it is the same server. As two, it could be ejected as one of two."""
    backends = "http://127.0.0.1:1/v1,http://127.0.0.1:1,http://127.0.0.1:2"
    source = RoutesSource(load_settings({"BACKENDS": backends}, 2), {})
    (version,) = source.load().routes.models[0].versions
    assert [endpoint.url for endpoint in version.endpoints] == ["http://127.0.0.1:1", "http://127.0.0.1:2"]


def test_settings_are_shown_without_digests() -> None:
    """A digest of a key that a person chose can be guessed, so neither `check` nor the admin API shows one."""
    settings = load_settings({"ADMIN_KEY_SHA256": "ab" * 32, "KEYS_FILE": "/keys.toml"}, 1)
    shown = shown_settings(settings)
    assert (shown["ADMIN_KEY_SHA256"], shown["KEYS_FILE"]) == ("***", "/keys.toml")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://user:secret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:se@cr/et@host", "redis://***@host"),
        ("rediss://secret@host", "rediss://***@host"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("https://host/a@b", "https://***@b"),
        ("router@host", "router@host"),
        (("a", "redis://u:secret@b"), ["a", "redis://***@b"]),
        (None, None),
        (5, 5),
    ],
)
def test_settings_are_shown_without_users_and_passwords_of_urls(value: object, shown: object) -> None:
    """Whatever setting has a URL: what stands before its @ may be a password, or a token in the place of a user."""
    assert shown_setting("SOME_URL", value) == shown


def test_kv_endpoints_are_shown_without_passwords() -> None:
    """Of the settings that there are, these may have some."""
    settings = load_settings({"KV_ENDPOINTS": "a:1, redis://u:secret@b:6379/0, redis://secret@c"}, 1)
    assert shown_settings(settings)["KV_ENDPOINTS"] == ["a:1", "redis://***@b:6379/0", "redis://***@c"]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("JWT_JWKS", "https://issuer.test/keys?token=SECRET"),
        ("JWT_JWKS", "https://issuer.test?SECRET"),
        ("JWT_JWKS", "https://u:SECRET@issuer.test/keys"),
        ("BACKENDS", "http://a, http://b/v1?api-key=SECRET"),
        ("BACKENDS", "http://b/#SECRET, http://a"),
        ("CORS_ORIGINS", "https://a.test/?SECRET"),
        ("JWT_HMAC_KEY_FILE", "SECRET-of-many-bytes"),
        ("TLS_KEY_FILE", "-----BEGIN PRIVATE KEY-----SECRET"),
        ("ADMIN_KEY_SHA256", "SECRET"),
    ],
)
def test_no_refusal_repeats_what_may_be_a_key(variable: str, text: str) -> None:
    """Neither the query or fragment of a URL, nor a key that was set where its file or its digest belongs."""
    message = refusal(**{variable: text})
    assert message.startswith(f"{variable}=")
    assert "SECRET" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (",", "a digest"),
        (" , ,", "a digest"),
        (hashlib.sha256(b"").hexdigest(), "an empty text"),
        ("ab" * 32 + "," + hashlib.sha256(b"\n").hexdigest().upper(), "an empty text"),
    ],
)
def test_key_of_operators_is_a_key(text: str, said: str) -> None:
    """What a shell makes of variables that are not set, lists and digests of nothing, must open nothing."""
    assert said in refusal(ADMIN_KEY_SHA256=text)
