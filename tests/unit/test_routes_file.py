"""Routes files: both formats say the same, and every mistake is one line that says where it is."""

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.config.route_schema import (
    Endpoint,
    Model,
    Routes,
    Timeouts,
    Version,
)
from app.config.route_values import LISTED_PATH_RULE, NAME_RULE, OTHERS_NAME_RULE
from app.config.routes_file import parse_routes
from app.config.routes_file.source import Mistake
from app.errors import RoutesError
from tests.support.malformed import ODD_NAMES

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = {kind: (DOCS / f"routes.example.{kind}").read_text() for kind in ("toml", "yaml")}
KINDS = ("toml", "yaml")

NAME = NAME_RULE
OTHERS_NAME = OTHERS_NAME_RULE
HEADER = "1 to 64 letters, digits and hyphens"

# A line 4 of a model that has a name and an endpoint, and what is said of it after `models[0]`.
MEMBERS = [
    ("max_concurrency = 0", ".max_concurrency must be a whole number, 1 to 1000000"),
    ("max_concurrency = 1000001", ".max_concurrency must be a whole number, 1 to 1000000"),
    ("max_concurrency = 1.5", ".max_concurrency must be a whole number, 1 to 1000000, not a number"),
    ('max_concurrency = "8"', ".max_concurrency must be a whole number, 1 to 1000000, not text"),
    ("max_concurrency = true", ".max_concurrency must be a whole number, 1 to 1000000, not true or false"),
    ("max_concurrency = [1]", ".max_concurrency must be a whole number, 1 to 1000000, not a list"),
    ("max_concurrency = {}", ".max_concurrency must be a whole number, 1 to 1000000, not a table"),
    ("max_concurrency = 99999999999999999999", ".max_concurrency must be a finite number within 1e15"),
    ("retry_budget = -0.1", ".retry_budget must be a number, 0 to 1"),
    ("retry_budget = 1e300", ".retry_budget must be a finite number within 1e15"),
    ("load_bound = 0.5", ".load_bound must be a number, 1 to 100"),
    ("prefix_bytes = 0", ".prefix_bytes must be a whole number, 1 to 1000000"),
    ("forward_credentials = 1", ".forward_credentials must be true or false, not a whole number"),
    ('forward_credentials = "yes"', ".forward_credentials must be true or false, not text"),
    ('protocol = "grpc"', ".protocol must be openai, v2 or simulated"),
    ("protocol = 2", ".protocol must be openai, v2 or simulated, not a whole number"),
    (
        'balancing = "random"',
        ".balancing must be least_inflight, least_load, p2c, round_robin, session, prefix or prefix_hash",
    ),
    ("slow_start_s = -1", ".slow_start_s must be a number, 0 to 86400"),
    ('balancing = "session"', ".balancing is session: session_header or session_cookie must be there too"),
    ('session_header = "X-Session"', ".session_header must be there only when balancing is session"),
    ('session_cookie = "sid"', ".session_cookie must be there only when balancing is session"),
    ('session_header = "a b"', f".session_header must be {HEADER}"),
    ('session_cookie = ""', f".session_cookie must be {HEADER}"),
    ('session_cookie = "sid\\n"', ".session_cookie must be text without line breaks and other control characters"),
    ('paths = "/v1/custom"', ".paths must be a list, not text"),
    ('paths = ["v1/custom"]', f".paths[0] must be {LISTED_PATH_RULE}"),
    *(
        (f'paths = ["/a", "{path}"]', f".paths[1] must be {LISTED_PATH_RULE}")
        for path in ("", "/", "/a/", "//a", "/a//b", "/./a", "/a/..", "/a?b", "/a#b", "/%61", "/a b", "/{a}", "/\u00e4")
    ),
    (f'paths = ["/{"a" * 200}"]', f".paths[0] must be {LISTED_PATH_RULE}"),
    ('paths = ["/a", "/b", "/a"]', ".paths[2] is there twice: it must be there once"),
    *(
        (f'paths = ["{path}"]', ".paths[0] is served by the router anyway: it must be another one")
        for path in (
            *("/v1/chat/completions", "/v1/messages", "/score", "/infer", "/metrics", "/healthz", "/v1/models"),
            *("/v1/models/a/b", "/v2", "/v2/models/a", "/v2/models/a/infer", "/v2/models/a/versions/1/generate_stream"),
        )
    ),
    ('paths = ["/a"]\nprotocol = "v2"', ".paths must not be there: a body names its model only with openai"),
    ('aliases = ["a", " b"]', f".aliases[1] must be {NAME}"),
    ('aliases = [""]', f".aliases[0] must be {NAME}"),
    ('aliases = [".."]', f".aliases[0] must be {NAME}"),
    ('aliases = ["."]', f".aliases[0] must be {NAME}"),
    ("aliases = [1.0]", f".aliases[0] must be {NAME}, not a number: put it in quotes"),
    ('aliases = "a"', ".aliases must be a list, not text"),
    ('aliases = ["m"]', ".aliases[0] is the same as models[0].name: names and aliases must differ"),
    ('aliases = ["a", "a"]', ".aliases[1] is the same as models[0].aliases[0]"),
    ("timeouts = []", ".timeouts must be a table, not a list"),
    ("timeouts = { connect_s = 0 }", ".timeouts.connect_s must be a number, above 0, up to 86400"),
    ("timeouts = { idle_s = 86401 }", ".timeouts.idle_s must be a number, above 0, up to 86400"),
    ("timeouts = { connect_s = 9, total_s = 8 }", ".timeouts.connect_s is 9: it must be at most total_s, 8"),
    ("timeouts = { total_s = 4 }", ".timeouts.total_s is 4: it must be at least connect_s, 5"),
    (
        "timeouts = { idle = 4 }",
        ".timeouts.idle is no member: connect_s, first_byte_s, idle_s, total_s, connection_max_age_s may be there",
    ),
    ("ejection = { base_s = 301 }", ".ejection.base_s is 301: it must be at most max_s, 300"),
    ("ejection = { max_s = 1 }", ".ejection.max_s is 1: it must be at least base_s, 5"),
    ("ejection = { failure_rate = 0 }", ".ejection.failure_rate must be a number, above 0, up to 1"),
    ("ejection = { max_share = 2 }", ".ejection.max_share must be a number, 0 to 1"),
    ("load_report = { interval_s = 0.5 }", ".load_report.interval_s must be a number, 1 to 3600"),
    ("load_report = { port = 65536 }", ".load_report.port must be a whole number, 1 to 65535"),
    ('load_report = { source = "both" }', ".load_report.source must be metrics or header"),
    ('health_check = { path = "x" }', ".health_check.path must be a path that begins with /, without blanks"),
    ("health_check = { healthy_after = 0 }", ".health_check.healthy_after must be a whole number, 1 to 100"),
    ("health_check = { interval_s = -1 }", ".health_check.interval_s must be a number, 0 to 86400"),
    ("timeout = 1", ".timeout is no member: name, aliases, protocol,"),
    ('"time out" = 1', " has a key that is no member's name"),
]

# An endpoint in line 3 of a model, and what is said of it after `models[0].endpoints[0]`.
URL = " is not a model server's: "
PASSWORD = URL + "a URL must hold no credentials; a routes file takes credential_env or credential_file"
SCHEME = URL + "a URL must begin with http:// or https://"
ENDPOINT_MEMBERS = (
    "url, credential_env, credential_file, ca_file, client_cert_file, client_key_file, server_name, weight"
)
HOST = URL + "the host must be"
PORT = URL + "the port must be a number from 1 to 65535"
PATH = URL + "a URL may have a path, without a slash at its end, and no query or fragment"
ENDPOINTS = [
    ('""', SCHEME),
    ('"h:8000"', SCHEME),
    ('"HTTP://h"', SCHEME),
    ('"ftp://h"', SCHEME),
    ('"http:/h"', SCHEME),
    ('"http://"', SCHEME),
    ('"http://:80"', HOST),
    ('"http://a b"', HOST),
    ('"http://-h"', HOST),
    ('"http://h\u00e9"', HOST),
    ('"http://::1:80"', HOST),
    ('"http://[::1:80"', HOST),
    ('"http://[::g]:80"', HOST),
    ('"http://[fe80::1%25eth0]"', HOST),
    ('"http://[::1]80"', URL),
    ('"http://[:::::]:80"', URL),
    ('"http://h:"', PORT),
    ('"http://h:0"', PORT),
    ('"http://h:65536"', PORT),
    ('"http://h:080"', PORT),
    ('"http://h:\uff18"', PORT),
    ('"http://h/?a=1"', PATH),
    ('"http://h#a"', HOST),
    ('"http://h/#a"', PATH),
    ('"http://h/a b"', PATH),
    ('"http://h//a"', PATH),
    ('"http://h/\\u0000"', " must be text without line breaks"),
    ('"http://h/\\n"', " must be text without line breaks"),
    ('"http://h/\\u2028"', " must be text without line breaks"),
    ('"http://SECRET@h"', PASSWORD),
    ('"http://user:SECRET@h:1"', PASSWORD),
    ('"http://user:1/SECRET@h"', PASSWORD),
    ('"user:SECRET@h"', PASSWORD),
    ('"http://h?key=SECRET"', HOST),
    ('{ url = "http://user:SECRET@h" }', ".url" + PASSWORD),
    (
        '{ "http://user:SECRET@h" = 1 }',
        f" has a key that is no member's name: {ENDPOINT_MEMBERS} may",
    ),
    ("{}", " must have url"),
    ("1", " must be a table, not a whole number"),
    ("[]", " must be a table, not a list"),
    ("{ url = 1 }", ".url must be an http:// or https:// URL, not a whole number"),
    (
        '{ url = "http://h", share = 1 }',
        f".share is no member: {ENDPOINT_MEMBERS} may be there",
    ),
    ('{ url = "http://h", credential_env = "1A" }', ".credential_env must be the name of a variable"),
    ('{ url = "http://h", credential_file = "token" }', ".credential_file must be an absolute path"),
    ('{ url = "http://h", ca_file = "/a" }', ".ca_file must be there only with an https:// URL"),
    ('{ url = "http://h", server_name = "a" }', ".server_name must be there only with an https:// URL"),
    ('{ url = "https://h", ca_file = "a" }', ".ca_file must be an absolute path"),
    ('{ url = "https://h", server_name = "a b" }', ".server_name must be the name of a host, or its IP address"),
    (
        '{ url = "https://h", client_key_file = "/a" }',
        ".client_key_file must be there only together with client_cert_file",
    ),
    (
        '{ url = "http://h", credential_env = "A", credential_file = "/a" }',
        ".credential_file must not be there together with credential_env",
    ),
]

# Models (a + stands between two), the line of the mistake, and what is said.
WHOLE = """name = "m"
versions = [
  { name = "a", endpoints = ["http://a"] },
  %s
]"""
MODELS = [
    ('name = ""\nendpoints = ["http://h"]', 2, f"models[0].name must be {NAME}"),
    ('name = ".."\nendpoints = ["http://h"]', 2, f"models[0].name must be {NAME}"),
    ("name = 8\nendpoints = []", 2, f"models[0].name must be {NAME}, not a whole number: put it in quotes"),
    ('name = "m"\nendpoints = []\nversions = []', 3, "models[0].endpoints must not be there together with versions"),
    (
        'name = "m"\nendpoints = ["http://h"]\nprotocol = "simulated"',
        3,
        "models[0].endpoints must not be there: a simulated model has none",
    ),
    (
        'name = "m"\nupstream_model = "x"',
        3,
        "models[0].upstream_model must not be there without one of endpoints, dns, service",
    ),
    ('name = "m"\nendpoints = []', 3, "models[0].endpoints must hold at least one endpoint"),
    ('name = "m"\nendpoints = {}', 3, "models[0].endpoints must be a list, not a table"),
    ('name = "m"\nversions = []', 3, "models[0].versions must hold at least one version with a weight above 0"),
    ('name = "m"\nversions = 1', 3, "models[0].versions must be a list, not a whole number"),
    (
        'name = "m"\nendpoints = [\n  "http://h",\n  "http://h/"\n]',
        5,
        "models[0].endpoints[1] is the same as models[0]",
    ),
    (
        'name = "m"\nendpoints = [\n  "http://h",\n  "http://H:80"\n]',
        5,
        ".endpoints[1] is the same as models[0].endpoi",
    ),
    (WHOLE % "1", 5, "models[0].versions[1] must be a table, not a whole number"),
    (
        WHOLE % '{ name = "a", endpoints = ["http://b"] }',
        5,
        "versions[1].name is the same as models[0].versions[0].name",
    ),
    (WHOLE % '{ name = "b" }', 5, "models[0].versions[1].endpoints must hold at least one endpoint"),
    (WHOLE % '{ name = "-", endpoints = [] }', 5, "models[0].versions[1].name must be 1 to 63 letters, digits, dots"),
    (WHOLE % "{ name = 2, endpoints = [] }", 5, "models[0].versions[1].name must be 1 to 63 letters, digits, dots"),
    (WHOLE % "{ name = 1.10, endpoints = [] }", 5, "a letter or a digit, not a number: put it in quotes"),
    (WHOLE % "{ weight = -1 }", 5, "models[0].versions[1].weight must be a whole number, 0 to 1000000"),
    (WHOLE % '{ upstream_model = "." }', 5, f"models[0].versions[1].upstream_model must be {OTHERS_NAME}"),
    (WHOLE % '{ upstream_model = " " }', 5, f"models[0].versions[1].upstream_model must be {OTHERS_NAME}"),
    (
        'name = "m"\nprotocol = "v2"\nendpoints = ["http://h"]\nupstream_model = "a/../b"',
        5,
        f"models[0].upstream_model becomes a part of a path of v2: it must not begin with a slash, and be {NAME}",
    ),
    (WHOLE % "{ endpoint = [] }", 5, "models[0].versions[1].endpoint is no member: name, weight, endpoints,"),
    (
        WHOLE % '{ endpoints = [{ url = "h" }] }',
        5,
        "models[0].versions[1].endpoints[0].url is not a model server's: a URL must begin with",
    ),
    (
        'name = "m"\nversions = [\n  { weight = 0, endpoints = ["http://h"] },\n]',
        3,
        "models[0].versions must hold at least one version with a weight above 0",
    ),
    (
        'name = "m"\nprotocol = "simulated"\nversions = [\n  { endpoints = ["http://h"] },\n]',
        5,
        "models[0].versions[0].endpoints must not be there: a simulated model has none",
    ),
    (
        'name = "m"\nprotocol = "simulated"\n+\nname = "m"\nprotocol = "simulated"',
        5,
        "models[1].name is the same as models[0].name",
    ),
    (
        'name = "m"\naliases = [\n"a",\n"n"\n]\nprotocol = "simulated"\n+\nname = "n"\nprotocol = "simulated"',
        5,
        "models[0].aliases[1] is the same as models[1].name",
    ),
    (
        'name = "m"\naliases = ["a"]\nprotocol = "simulated"\n+\nname = "n"\naliases = ["a"]\nprotocol = "simulated"',
        7,
        "models[1].aliases[0] is the same as models[0].aliases[0]",
    ),
]

# What only TOML can get wrong, or says in a way of its own.
TOML = [
    ("", 1, "the file is empty: it must hold `models`, at least one"),
    ("\n# nothing\n", 1, "the file is empty"),
    ("models = []", 1, "models must have at least 1 item"),
    ("\nmodels = {}", 2, "models must be a list, not a table"),
    ("[models]\nname = 'm'", 1, "models must be a list, not a table"),
    ("[[model]]\nname = 'm'", 1, "model is no member: models, default_model may be there"),
    ("a = 1\n\nb =", 3, "syntax: Invalid value"),
    ("a = 1\na = 2", 2, "syntax: the key is there twice: it must be there once"),
    ("[a]\nb = 1\n[a]\n", 3, "syntax: Cannot declare ('a',) twice"),
    ("a = '", 1, "syntax: "),
    ("a = {x = 'SECRET@', x = '", 1, "syntax: "),
    ("['SECRET@h']\n['SECRET@h']", 2, "syntax: can't be read"),
    ("a = 2020-02-30", 1, "syntax: Invalid date or datetime"),
    (f"\na = {'[' * 9999}", 1, "syntax: nested too deep: at most 20 levels are read"),
    (f"\n{'a.' * 30}a = 1", 2, "syntax: nested too deep: at most 20 levels are read"),
    (f"\nmodels = {'[' * 30}{']' * 30}", 2, "syntax: nested too deep: at most 20 levels are read"),
    (f"a = {'9' * 5000}", 1, "syntax: Exceeds the limit"),
    ("[[models]]\nname = 2020-01-01", 2, "models[0].name must be text, a number, true or false, not a date"),
    ("[[models]]\nload_bound = nan", 2, "models[0].load_bound must be a finite number"),
    ("[[models]]\nload_bound = -inf", 2, "models[0].load_bound must be a finite number"),
    ("default_model = 'n'\n[[models]]\nname = 'm'\nprotocol = 'simulated'", 1, "default_model must be the name of one"),
    ("\n[[models]]\nendpoints = ['http://h']\n", 2, "models[0] must have name"),
    ("\n[[models]]\nname = 'm'\n\n[models.timeouts]\n", 2, "models[0] must have endpoints, dns, service or versions"),
    ("[[models]]\nname = 'm'\nendpoints = []\n[models.timeouts]\nx = 1\n", 5, "models[0].timeouts.x is no member"),
    ("[[models]]\nname = 'm'\n[[models]]\nname = 'n'\n[models.timeouts]\nx = inf\n", 6, "models[1].timeouts.x must be"),
    ("[[models]]\n[[models.versions]]\n[[models.versions]]\nweight = nan", 4, "models[0].versions[1].weight must be"),
    (
        "[[models]]\n[[models]]\n[[models.versions]]\n[[models.versions.endpoints]]\nurl = nan",
        5,
        "models[1].versions[0].endpoints[0].url must be",
    ),
    ("[[models]]\n\ntimeouts.connect_s = 1\ntimeouts.idle_s = nan", 4, "models[0].timeouts.idle_s must be"),
    ("[[ models ]]\n[ models . timeouts ]\n'idle_s' = nan", 3, "models[0].timeouts.idle_s must be"),
    ('[["models"]]\n["models"."timeouts"]\n"idle_s"=nan', 3, "models[0].timeouts.idle_s must be"),
    ('[["mod\\u0065ls"]]\n\nname = nan', 1, "models[0].name must be"),
    ("models = [\n  {name = 'a'}, # ]\n\n  {name = nan},\n]", 4, "models[1].name must be"),
    ("models = [{name = '''\n[[x]]''', aliases = [\n 'a',\n nan]}]", 4, "models[0].aliases[1] must be"),
    ("[[models]]\r\nname = 'm' # [\r\naliases = [[\r\n],[ 1,\r\n[nan]]]", 5, "models[0].aliases[1][1][0] must be"),
    ('[[models]]\nname = """a \\\n"b" \\""""""\nprotocol = nan', 4, "models[0].protocol must be"),
    ('[[models]]\nname = """a\n"b" \\""""""\nprotocol = "v2"', 2, "models[0].name must be text without line breaks"),
    ("[[models]]\nname = 1979-05-27 07:32:00.5\naliases = 1", 2, "models[0].name must be"),
    ("[[models]]\nload_bound = 1_0.5e+1 # ,\naliases = [1.5, 07:32:00]", 3, "models[0].aliases[1] must be"),
]
SIMULATED = "models:\n- name: m\n  protocol: simulated\n"
YAML = [
    ("", 1, "the file is empty: it must hold `models`, at least one"),
    ("# nothing\n", 1, "the file is empty"),
    ("null", 1, "the file is empty"),
    ("{}", 1, "the file is empty"),
    ("\n- models", 1, "the file must be a table that holds `models`"),
    ("models", 1, "the file must be a table that holds `models`"),
    ("\nmodels: []", 2, "models must have at least 1 item"),
    ("models:", 1, "models must be a list, not nothing"),
    ("model: []", 1, "model is no member: models, default_model may be there"),
    ("models:\n\t- name: m", 2, "cannot start any token: indent with spaces"),
    ("models:\n- name: m\n name: n", 3, "syntax: "),
    ("models: [", 1, "syntax: "),
    ("a: b: c", 1, "syntax: mapping values are not allowed here"),
    ("models: @", 1, "syntax: found character '@' that cannot start any token"),
    ("models:\n\n- endpoints: [http://h]", 3, "models[0] must have name"),
    ("models:\n\n- name: m", 3, "models[0] must have endpoints, dns, service or versions"),
    ("models: *SECRET", 1, "syntax: found undefined alias"),
    ("models: !SECRET!x y", 1, "syntax: found undefined tag handle"),
    ("models: SECRET@h: x", 1, "syntax: mapping values are not allowed here"),
    ("models: *SECRET@h", 1, "syntax: "),
    ("a: 1\n---\nb: 1", 2, "syntax: but found another document"),
    ("a: 1\nb: \0", 2, "syntax: a character that is not printable"),
    ("a: \ud800", 1, "syntax: a character that is not printable"),
    ('a: "\\UFFFFFFFF"', 1, "syntax: "),
    ("models: &a [*a]", 1, "syntax: nested too deep: at most 20 levels are read"),
    (f"models: {'[' * 999}", 1, "syntax: nested too deep: at most 20 levels are read"),
    (f"\nmodels: {'[' * 30}{']' * 30}", 2, "syntax: nested too deep: at most 20 levels are read"),
    (f"a: {'9' * 5000}", 1, "a must be a list, a table, text, a number, true or false, without a tag"),
    ("a: !!int x", 1, "a must be a list, a table, text, a number, true or false, without a tag"),
    ("a: !!bool x", 1, "a must be a list, a table, text"),
    ("a: !!binary aGk=", 1, "a must be a list, a table, text"),
    ("a: !!timestamp 2020-01-01", 1, "a must be a list, a table, text"),
    ("a: !!python/object:os.system {}", 1, "a must be a list, a table, text"),
    ("a: !!set {b}", 1, "a must be a list, a table, text"),
    ("a: !!str [b]", 1, "a must be a list, a table, text"),
    ("a: !!float nan", 1, "a must be a finite number"),
    (SIMULATED + "  name: n", 4, "models[0].name is there twice: it must be there once"),
    (SIMULATED + "models: []", 4, "models is there twice: it must be there once"),
    (SIMULATED + "  1: n", 4, "models[0] has a key that is no member's name: name, aliases,"),
    (SIMULATED + "  null: n", 4, "models[0] has a key that is no member's name"),
    (SIMULATED + "  [a]: n", 4, "models[0] has a key that is no member's name"),
    (SIMULATED + "  ? !!str [a]\n  : n", 4, "models[0] has a key that is no member's name"),
    (SIMULATED + "  <<: {}", 4, "models[0] has a key that is no member's name"),
    (SIMULATED + "  http://user:SECRET@h: n", 4, "models[0] has a key that is no member's name"),
    (SIMULATED + "  load_bound: .nan", 4, "models[0].load_bound must be a number, 1 to 100, not text"),
    (SIMULATED + "  forward_credentials: yes", 4, "models[0].forward_credentials must be true or false, not text"),
    (
        SIMULATED + "  max_concurrency: 010",
        4,
        "models[0].max_concurrency must be a whole number, 1 to 1000000, not text",
    ),
    (
        SIMULATED + "  max_concurrency: 1:30",
        4,
        "models[0].max_concurrency must be a whole number, 1 to 1000000, not text",
    ),
    (SIMULATED + "  name2: |\n    a\n    b", 4, "models[0] has a key that is no member's name"),
    (
        SIMULATED + "  timeouts: &t\n    connect_s: 1\n    idle_s: 0",
        6,
        "models[0].timeouts.idle_s must be a number, above 0, up to 86400",
    ),
    (SIMULATED + "  aliases:\n  - a\n  -\n  - b", 6, f"models[0].aliases[1] must be {NAME}, not nothing"),
    (SIMULATED + "default_model: n", 4, "default_model must be the name of one of the models, and no alias"),
    (SIMULATED + "  aliases: [n]\ndefault_model: n", 5, "default_model must be the name of one of the models, and no"),
    (SIMULATED + "default_model: 1", 4, f"default_model must be {NAME}, not a whole number: put it in quotes"),
]


def written(models: str, kind: str) -> str:
    """Models in either format, each line where it is in the other."""
    if kind == "toml":
        return "[[models]]\n" + models.replace("\n+\n", "\n[[models]]\n")
    blocks = models.replace(" = ", ": ").replace("\n", "\n  ").split("\n  +\n  ")
    return "models:\n- " + "\n-\n  ".join(blocks)


def refusal(text: str, kind: str) -> str:
    """The one line that says why this text is refused."""
    with pytest.raises(RoutesError) as caught:
        parse_routes(text, f"/etc/routes.{kind}")
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert "SECRET" not in message
    assert not re.search("Expected `|regex|enum", message), "msgspec's words, not the router's"
    return message


def all_mistakes(text: str, name: str) -> list[str]:
    """Every mistake of a file that has some."""
    mistakes: list[Mistake] = []
    try:
        parse_routes(text, name, mistakes)
    except RoutesError as error:
        return [*(str(mistake.error) for mistake in mistakes), str(error)]
    return [str(mistake.error) for mistake in mistakes]


def check(text: str, kind: str, line: int, fragment: str) -> None:
    """The message begins with the file and the line, and says the fragment. It is among those that are collected."""
    message = refusal(text, kind)
    assert message.startswith(f"/etc/routes.{kind}:{line}: "), message
    assert fragment in message
    assert message in all_mistakes(text, f"/etc/routes.{kind}")


def test_the_examples_say_the_same() -> None:
    """The two examples of docs/ are one and the same configuration, and show what they are meant to."""
    toml, from_yaml = (parse_routes(text, f"routes.{kind}") for kind, text in EXAMPLES.items())
    assert toml == from_yaml
    llama, bge = toml.models
    assert toml.default is llama
    assert [version.weight for version in llama.versions] == [95, 5]
    assert (llama.aliases, llama.balancing) == (("gpt-4o-mini",), "prefix")
    assert (bge.protocol, bge.versions[0].endpoints[0].credential_file) == ("v2", "/var/run/secrets/triton/token")


@pytest.mark.parametrize("kind", KINDS)
def test_short_forms(kind: str) -> None:
    """An endpoint may be its URL, a model's only version may be left out, and a simulated model needs none."""
    text = written(
        'name = "m"\nendpoints = ["http://h/", "https://[::1]:1/x/"]\n+\nname = "s"\nprotocol = "simulated"', kind
    )
    endpoints = (Endpoint(url="http://h"), Endpoint(url="https://[::1]:1/x"))
    assert parse_routes(text, f"x.{kind}") == Routes(
        models=(
            Model(name="m", versions=(Version(endpoints=endpoints),)),
            Model(name="s", protocol="simulated", versions=(Version(),)),
        )
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "members", ['session_header = "X-S"', 'session_cookie = "s"', 'session_header = "X-S"\nsession_cookie = "s"']
)
def test_sessions_by_header_cookie_or_both(members: str, kind: str) -> None:
    """Balancing by session takes either member, and both."""
    text = written(f'name = "m"\nendpoints = ["http://h"]\nbalancing = "session"\n{members}', kind)
    assert parse_routes(text, f"x.{kind}").models[0].balancing == "session"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_change_on_the_way_are_refused(name: str, kind: str) -> None:
    """A name may become a part of a path. One that a proxy would normalise is refused, and what is right is said."""
    rest = 'endpoints = ["http://h"]'
    check(written(f'name = "{name}"\n{rest}', kind), kind, 2, f"models[0].name must be {NAME}")
    check(written(f'name = "m"\n{rest}\naliases = ["{name}"]', kind), kind, 4, f"aliases[0] must be {NAME}")
    names = 'name = "org/m"\naliases = ["a/b/c.d", "...", "a/.b/c..", ".m"]'
    assert parse_routes(written(f"{names}\n{rest}", kind), f"x.{kind}").models[0].name == "org/m"


@pytest.mark.parametrize("kind", KINDS)
def test_model_server_may_call_a_model_by_a_path(kind: str) -> None:
    """vLLM's name for a model is the path of its files, unless it is told another. It is sent in the body only."""
    text = written('name = "m"\nendpoints = ["http://h"]\nupstream_model = "/models/m"', kind)
    assert parse_routes(text, f"x.{kind}").models[0].versions[0].upstream_model == "/models/m"


def test_json_is_read_as_json() -> None:
    """Tabs between members, numbers with only an exponent, no blank after a colon."""
    text = (
        '{"models":[\n\t{"name":"m",\n\t"protocol":"simulated",\n\t"load_bound":1e1,\n\t"timeouts":{"idle_s":5e-1}}]}'
    )
    model = parse_routes(text, "routes.json").models[0]
    assert (model.load_bound, model.timeouts) == (10.0, Timeouts(idle_s=0.5))
    check('{"models": [\n\t{"name": "a"}]}', "json", 2, "models[0] must have endpoints, dns, service or versions")
    check('{"models": [],\n "models": []}', "json", 2, "models is there twice")


def test_words_of_yaml_stay_words() -> None:
    """A name that looks like a date or like YAML 1.1's true needs no quotes; an alias repeats a value."""
    text = (
        "models:\n- {name: 2020-01-01, endpoints: &e [http://h]}\n- {name: yes, endpoints: *e, max_concurrency: null}\n"
    )
    assert [model.name for model in parse_routes(text, "x.yml").models] == ["2020-01-01", "yes"]


@pytest.mark.parametrize("name", ["routes", "routes.ini", "routes.toml.bak", "/a.toml/b"])
def test_other_endings(name: str) -> None:
    """The ending alone says what a file is."""
    with pytest.raises(RoutesError, match=re.escape(f"{name}: ") + r".* \.toml, \.yaml, \.yml or \.json$"):
        parse_routes("", name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("member", "problem"), MEMBERS)
def test_members(member: str, problem: str, kind: str) -> None:
    """A member that can't be used is named, and its line."""
    check(written(f'name = "m"\nendpoints = ["http://h"]\n{member}', kind), kind, 4, f": models[0]{problem}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("endpoint", "problem"), ENDPOINTS)
def test_endpoints(endpoint: str, problem: str, kind: str) -> None:
    """An endpoint that can't be used is named; nothing of its URL is repeated."""
    check(written(f'name = "m"\nendpoints = [{endpoint}]', kind), kind, 3, f": models[0].endpoints[0]{problem}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("models", "line", "problem"), MODELS)
def test_models(models: str, line: int, problem: str, kind: str) -> None:
    """Models and versions that can't be used, or don't go together."""
    check(written(models, kind), kind, line, problem)


@pytest.mark.parametrize(("text", "line", "problem"), TOML)
def test_toml(text: str, line: int, problem: str) -> None:
    """What is TOML's own, and the ways it has to say where a member is."""
    check(text, "toml", line, problem)


@pytest.mark.parametrize(("text", "line", "problem"), YAML)
def test_yaml(text: str, line: int, problem: str) -> None:
    """What is YAML's own."""
    check(text, "yaml", line, problem)


def test_aliases_do_not_unfold_without_end() -> None:
    """A few lines of YAML that stand for billions of values are refused, in no time."""
    text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "is one value too many: at most 100000 are read" in refusal(text, "yaml")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_line_of_the_examples_is_found(kind: str) -> None:
    """A value that can't be used is reported at its line, wherever in the file it is."""
    lines = EXAMPLES[kind].split("\n")
    sign, bad = (" =", "1979-05-27") if kind == "toml" else (":", "!bad x")
    checked = 0
    for number, line in enumerate(lines):
        if found := re.match(rf"( *(?:- )?([a-z_]+){sign} )[^\[{{#\s]", line):
            text = "\n".join([*lines[:number], found[1] + bad, *lines[number + 1 :]])
            check(text, kind, number + 1, f"{found[2]} must be ")
            checked += 1
    assert checked > 30


def toml_ish(value: object) -> str:
    """A value as TOML might have it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml_ish(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",\n".join(toml_ish(item) for item in value) + "]"
    return str(value) if isinstance(value, dt.date) else json.dumps(value, default=repr)


MEMBER_NAMES = st.sampled_from(
    [field for record in (Routes, Model, Version, Endpoint, Timeouts) for field in record.__struct_fields__]
)
LEAVES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.datetimes()
)
JUNK = st.recursive(
    LEAVES | st.sampled_from(["http://h", "simulated", 10**400, "m"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MEMBER_NAMES | LEAVES, inner, max_size=6),
    max_leaves=30,
)


def unharmed(text: str, name: str) -> None:
    """Routes come of it, or a RoutesError of one line."""
    try:
        routes = parse_routes(text, name)
    except RoutesError as error:
        message = str(error)
    else:
        assert msgspec.convert(msgspec.to_builtins(routes), Routes) == routes
        assert not all_mistakes(text, name)
        return
    told = all_mistakes(text, name)
    assert message in told
    assert all(re.match(rf"{re.escape(name)}:\d+: .+", one) for one in told)
    assert message.splitlines() == [message]


@pytest.mark.slow
@given(st.data(), JUNK)
def test_nothing_else_is_ever_raised(data: st.DataObject, junk: object) -> None:
    """Whatever structure a file has: as it is, as a list of models, and in the place of any member of an example."""
    root = yaml.safe_load(EXAMPLES["yaml"])
    place: Any = root
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = junk
    for whole in (junk, {"models": junk}, {"models": [junk]}, root):
        unharmed(yaml.safe_dump(whole, allow_unicode=True), "x.yaml")
        unharmed(json.dumps(whole, default=repr, skipkeys=True), "x.json")
        if isinstance(whole, dict):
            lines = (f"{json.dumps(str(name))} = {toml_ish(value)}" for name, value in whole.items())
            unharmed("\n".join(lines), "x.toml")


@pytest.mark.slow
@given(st.data(), st.sampled_from(KINDS))
def test_damaged_files(data: st.DataObject, kind: str) -> None:
    """An example with pieces cut out, doubled or overwritten."""
    text = EXAMPLES[kind].encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 40))
        piece = st.binary(max_size=8) | st.sampled_from(
            [b"[", b"{", b"*a", b"&a ", b"!!x ", b"'", b'"""', b"\t", b"\n- "]
        )
        text = text[:start] + data.draw(piece | st.just(text[start:end] * 2)) + text[end:]
    unharmed(text.decode(errors="replace"), f"x.{kind}")


@pytest.mark.slow
@given(st.text(alphabet="[]{}=.,:-&*!|>%@\"'\\#\n\t a0\ufeff\ud800\x85\u2028~?<"), st.sampled_from([*KINDS, "json"]))
def test_punctuation(text: str, kind: str) -> None:
    """Texts that are nothing but the signs that mean something to a parser."""
    unharmed(text, f"x.{kind}")


@pytest.mark.parametrize(
    ("reasons", "says"),
    [
        ("[]", "fallback_on must hold at least one reason"),
        ('["status_5xx", "status_5xx"]', "fallback_on[1] is there twice"),
    ],
)
def test_reasons_to_fall_back_are_some_and_differ(reasons: str, says: str) -> None:
    """A fallback that is never used is a mistake."""
    text = '[[models]]\nname = "{}"\nendpoints = ["http://a"]\n'
    with pytest.raises(RoutesError, match=re.escape(says)):
        parse_routes(text.format("a") + f'fallback = ["b"]\nfallback_on = {reasons}\n' + text.format("b"), "r.toml")
