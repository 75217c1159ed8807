import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from gateway.config import (
    BackendSettings,
    DatabaseSettings,
    ModelDefaults,
    Settings,
    cache_dir,
    data_dir,
    load,
    read_backend,
)
from gateway.errors import SettingsError
from gateway.scheduling.policies import policy_named

ROOT = Path(__file__).parents[3]
GPU = '[[backends]]\nname = "gpu-0"\nkind = "vllm"\nurl = "http://gpu-0:8000"\n'


@pytest.fixture
def config(tmp_path):
    """Write a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "magnus.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_without_anything_set_there_are_defaults():
    settings = load(None, {})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port, settings.auth.mode) == ("127.0.0.1", 8080, "open")


def test_an_empty_file_sets_nothing(config):
    assert load(config(""), {}) == Settings()


def test_the_file_sets_what_it_names(config):
    settings = load(config('[server]\nport = 9000\n[log]\nlevel = "debug"\n' + GPU), {})
    assert (settings.server.port, settings.log.level) == (9000, "debug")
    (backend,) = settings.backends
    assert (backend.name, backend.kind, backend.models, backend.kv_tokens) == ("gpu-0", "vllm", None, None)


def test_a_whole_number_of_seconds_will_do(config):
    assert load(config("[server]\nbody_timeout_s = 7"), {}).server.body_timeout_s == 7.0


def test_the_environment_wins_over_the_file(config):
    path = config("[server]\nport = 9000\nshutdown_s = 5.0")
    settings = load(path, {"MAGNUS_SERVER_PORT": "9001", "MAGNUS_DATABASE_STORE_PROMPTS": "true"})
    assert (settings.server.port, settings.server.shutdown_s) == (9001, 5.0)
    assert settings.database.store_prompts is True


def test_a_key_of_several_words_is_set_by_its_own_name():
    assert load(None, {"MAGNUS_SCHEDULING_QUEUE_TIMEOUT_S": "2.5"}).scheduling.queue_timeout_s == 2.5


def test_the_environment_replaces_the_list_of_backends(config):
    backends = (
        '[{"name": "a", "kind": "tgi", "url": "http://a"}, {"name": "b", "kind": "openai", "url": "https://b/x"}]'
    )
    settings = load(config(GPU), {"MAGNUS_BACKENDS": backends})
    assert [(backend.name, backend.kind) for backend in settings.backends] == [("a", "tgi"), ("b", "openai")]


def test_priorities_are_a_table_or_its_json(config):
    path = config("[scheduling.priorities]\nmail = -1\nnightly-report = 5")
    assert load(path, {}).scheduling.priorities == {"mail": -1, "nightly-report": 5}
    replaced = load(path, {"MAGNUS_SCHEDULING_PRIORITIES": '{"chat": 10}'})
    assert replaced.scheduling.priorities == {"chat": 10}


def test_models_are_tables_or_their_json(config):
    path = config('[models.aliases]\n"gpt-4o-mini" = "llama"\n[models.defaults."org/llama"]\nmax_tokens = 1024')
    models = load(path, {}).models
    assert (models.aliases, models.defaults["org/llama"].max_tokens) == ({"gpt-4o-mini": "llama"}, 1024)
    environ = {"MAGNUS_MODELS_ALIASES": '{"a": "b"}', "MAGNUS_MODELS_DEFAULTS": '{"b": {"max_tokens": 7}}'}
    models = load(path, environ).models
    assert (models.aliases, models.defaults) == ({"a": "b"}, {"b": ModelDefaults(max_tokens=7)})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "name"),
        ({"name": "a", "kind": "vllm"}, "url"),
        ({"name": "a", "kind": "x", "url": "http://a"}, "kind"),
        ({"name": "a", "kind": "vllm", "url": "http://a b"}, "url"),
        ({"name": "a", "kind": "vllm", "url": "http://me@a"}, "url"),
        ({"name": "a", "kind": "vllm", "url": "http://a", "models": ["a", 1]}, "models[1]"),
        ({"name": "a", "kind": "vllm", "url": "http://a", "api_key": "é"}, "api_key"),
        ({"name": "a", "kind": "vllm", "url": "https://a", "resolve": "each"}, "resolve"),
        ({"name": "a", "kind": "vllm", "url": "http://a", "colour": 1}, "colour"),
    ],
)
def test_a_backend_s_wrong_field_is_named(fields, named):
    with pytest.raises(SettingsError) as refusal:
        read_backend(fields)
    assert refusal.value.field == named


def test_an_alias_does_not_stand_for_another(config):
    with pytest.raises(SettingsError, match=r"^models\.aliases: 'a' stands for 'b'"):
        load(config('[models.aliases]\na = "b"\nb = "c"'), {})


def test_a_backend_by_itself_is_read_as_one_of_the_list():
    fields: dict[str, Any] = {"name": "a", "kind": "vllm", "url": "http://a"}
    assert read_backend(fields) == BackendSettings(**fields)


@pytest.mark.parametrize("name", ["fcfs", "sjf", "hrrn", "magnus"])
def test_every_policy_can_be_set(name):
    assert policy_named(load(None, {"MAGNUS_SCHEDULING_POLICY": name}).scheduling.policy).name == name


def test_variables_that_are_no_settings_are_ignored():
    environ = {"PATH": "/bin", "MAGNUSX": "1", "MAGNUS_CONFIG": "x.toml", "MAGNUS_CACHE": "/tmp"}
    assert load(None, environ) == Settings()


def test_variables_of_a_kubernetes_service_are_not_settings():
    environ = {
        "MAGNUS_GATEWAY_SERVICE_HOST": "10.0.0.7",
        "MAGNUS_GATEWAY_SERVICE_PORT_METRICS_HTTP": "9090",
        "MAGNUS_GATEWAY_PORT": "udp://10.0.0.7:53",
        "MAGNUS_AUTH_PORT_53_UDP_ADDR": "10.0.0.7",
        "MAGNUS_LOG_PORT_443_TCP": "tcp://[fd00::7]:443",
        "MAGNUS_SERVICE_HOST": "10.0.0.7",
        "MAGNUS_SERVICE_PORT": "8080",
        "MAGNUS_SERVICE_PORT_HTTP": "8080",
        "MAGNUS_PORT": "tcp://10.0.0.7:8080",
        "MAGNUS_PORT_8080_TCP": "tcp://10.0.0.7:8080",
        "MAGNUS_PORT_8080_TCP_PROTO": "tcp",
        "MAGNUS_PORT_8080_TCP_PORT": "8080",
        "MAGNUS_PORT_8080_TCP_ADDR": "10.0.0.7",
        "MAGNUS_SERVER_PORT": "tcp://10.0.0.8:80",
        "MAGNUS_DB_SERVICE_HOST": "10.0.0.9",
    }
    assert load(None, environ) == Settings()
    assert load(None, {**environ, "MAGNUS_SERVER_PORT": "9000"}).server.port == 9000


def test_variables_of_a_linked_container_are_not_settings():
    environ = {
        "MAGNUS_NAME": "/web/magnus",
        "MAGNUS_PORT": "tcp://172.17.0.5:8080",
        "MAGNUS_PORT_8080_TCP_ADDR": "172.17.0.5",
        "MAGNUS_ENV_PYTHON_VERSION": "3.12",
        "MAGNUS_1_ENV_LANG": "C.UTF-8",
    }
    assert load(None, environ) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAGNUS_PORT", "9000"),
        ("MAGNUS_SERVER_PROT", "tcp://10.0.0.7:80"),
        ("MAGNUS_SERVER_PORT_8080", "1"),
        ("MAGNUS_SERVICE_PORT", "http"),
        ("MAGNUS_NAME", "gateway"),
        ("MAGNUS_SERVER_ENVIRONMENT", "x"),
    ],
)
def test_mistyped_setting_is_not_taken_for_a_variable_of_kubernetes(name, value):
    with pytest.raises(SettingsError, match=name):
        load(None, {name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", "server.prot: no such setting; did you mean port?"),
        ("[log]\nx = 1", "log.x: no such setting; expected one of level, format"),
        ('[server]\nport = "80"', "server.port: expected a whole number, got text"),
        ("[server]\nport = 65536", "server.port: expected a whole number <= 65535"),
        ("server = 7", "server: expected a table, got a whole number"),
        ('[auth]\nmode = "closed"', "auth.mode: 'closed' is not one of open, keys"),
        (GPU + 'resolve = "all"', "backends[0].resolve: 'all' is not one of once, each"),
        (GPU + "kv_tokens = false", "backends[0].kv_tokens: expected a whole number, got true or false"),
        ('[[backends]]\nname = "a"', "backends[0].kind: missing, but required"),
        (
            "[models.defaults.m]\ntokens = 1",
            "models.defaults[...].tokens: no such setting; did you mean max_tokens?",
        ),
    ],
)
def test_error_says_what_would_be_right(config, text, message):
    path = config(text)
    with pytest.raises(SettingsError) as refusal:
        load(path, {})
    assert str(refusal.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nprot = 1", ["server", "prot"]),
        ("[sevrer]\nport = 1", ["sevrer"]),
        ("server = 7", ["server"]),
        ('[server]\nport = "80"', ["server.port", "whole number"]),
        ("[server]\nport = true", ["server.port", "whole number"]),
        ("[server]\nport = 65536", ["server.port", "65535"]),
        ("[server]\nbody_timeout_s = 0", ["server.body_timeout_s"]),
        ("[server]\nbody_timeout_s = nan", ["server.body_timeout_s"]),
        ("[server]\nmax_body_bytes = 0", ["server.max_body_bytes"]),
        ('[auth]\nmode = "closed"', ["auth.mode", "closed"]),
        ('[scheduling]\npolicy = "lifo"', ["scheduling.policy", "lifo"]),
        ("[scheduling]\nmax_queue = 0", ["scheduling.max_queue"]),
        ("[scheduling]\nmax_queue_tokens = 0", ["scheduling.max_queue_tokens"]),
        ("[scheduling]\nalpha = 0", ["scheduling.alpha"]),
        ("[scheduling]\nalpha = inf", ["scheduling.alpha"]),
        ("[scheduling]\nalpha = nan", ["scheduling.alpha"]),
        ("[scheduling]\npriorities = 1", ["scheduling.priorities"]),
        ("[scheduling.priorities]\nmail = 11", ["scheduling.priorities", "10"]),
        ("[scheduling.priorities]\nmail = 0.5", ["scheduling.priorities", "whole number"]),
        ('[[backends]]\nname = "a"', ["backends[0]", "kind"]),
        (GPU.replace("gpu-0", "gpu 0", 1), ["backends[0].name"]),
        (GPU + GPU.replace("vllm", "llama.cpp"), ["backends[1].kind", "llama.cpp"]),
        (GPU + "kv_tokens = -1", ["backends[0].kv_tokens"]),
        (GPU + "models = 7", ["backends[0].models"]),
        (GPU + 'resolve = "all"', ["backends[0].resolve", "all"]),
        (GPU + "idle_timeout_s = 0", ["backends[0].idle_timeout_s"]),
        ("[models]\naliases = 1", ["models.aliases"]),
        ("[models.aliases]\na = 1", ["models.aliases"]),
        ("[models.defaults.a]\nmax_tokens = 0", ["models.defaults", "max_tokens"]),
        ("[models.defaults.a]\nmax_token = 1", ["models.defaults", "max_token"]),
        ("port = \n", ["line 1"]),
    ],
)
def test_error_in_the_file_names_the_file(config, text, named):
    path = config(text)
    with pytest.raises(SettingsError) as refusal:
        load(path, {})
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert all(word in message for word in named)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("MAGNUS_SERVER_PORT", "eighty", "server.port"),
        ("MAGNUS_SERVER_PORT", "", "server.port"),
        ("MAGNUS_SERVER_PROT", "80", "prot"),
        ("MAGNUS_SEVRER_PORT", "80", "no such setting"),
        ("MAGNUS_SERVER", "80", "no such setting"),
        ("MAGNUS_BACKENDS_0_NAME", "a", "no such setting"),
        ("MAGNUS_DATABASE_STORE_PROMPTS", "perhaps", "database.store_prompts"),
        ("MAGNUS_SCHEDULING_ALPHA", "much", "scheduling.alpha"),
        ("MAGNUS_SCHEDULING_PRIORITIES", "mail=1", "MAGNUS_SCHEDULING_PRIORITIES"),
        ("MAGNUS_SCHEDULING_PRIORITIES", '{"mail": -11}', "scheduling.priorities"),
        ("MAGNUS_BACKENDS", "[", "MAGNUS_BACKENDS"),
        ("MAGNUS_BACKENDS", "{}", "backends"),
        ("MAGNUS_BACKENDS", '[{"name": "a", "kind": "tgi"}]', "backends[0]"),
    ],
)
def test_error_in_the_environment_names_the_variable(name, value, named):
    with pytest.raises(SettingsError) as refusal:
        load(None, {name: value})
    assert str(refusal.value).startswith(f"{name}: ")
    assert named in str(refusal.value)


@pytest.mark.parametrize("missing", ["nowhere.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, missing):
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path / missing))):
        load(tmp_path / missing, {})


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "magnus.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=re.escape(str(path))):
        load(path, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert load(None, {"MAGNUS_SERVER_HOST": host}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_beyond_loopback_keys_are_needed(host):
    with pytest.raises(SettingsError, match=r"^server\.host: .*auth\.mode"):
        load(None, {"MAGNUS_SERVER_HOST": host})
    settings = load(None, {"MAGNUS_SERVER_HOST": host, "MAGNUS_AUTH_MODE": "keys"})
    assert settings.server.host == host


@pytest.mark.parametrize(
    "url",
    [
        "gpu-0:8000",
        "ftp://gpu-0",
        "http://",
        "http://gpu-0/?x=1",
        "http://gpu-0/#x",
        "http://[::1",
        "http://gpu-0:99999",
    ],
)
def test_an_address_that_is_none_is_named(config, url):
    with pytest.raises(SettingsError, match=r"^backends\[1\]\.url: "):
        load(config(GPU + GPU.replace("http://gpu-0:8000", url).replace("gpu-0", "gpu-1", 1)), {})


def test_two_backends_of_one_name_are_refused(config):
    with pytest.raises(SettingsError, match="backends: name 'gpu-0' is used twice"):
        load(config(GPU + GPU), {})


@pytest.mark.parametrize("url", ["mysql://u:p@h/d", "sqlite:///x", "", "postgresql:u:p@h/d"])
def test_another_database_is_refused(url):
    with pytest.raises(SettingsError, match=r"^database\.url: "):
        load(None, {"MAGNUS_DATABASE_URL": url})


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_url_of_postgres_is_accepted(scheme):
    url = f"{scheme}://u:p@h/d?sslmode=require"
    assert load(None, {"MAGNUS_DATABASE_URL": url}).database.url == url


def test_a_model_is_not_trained_on_less_than_it_needs():
    with pytest.raises(SettingsError, match=r"^prediction\.window_rows: "):
        load(None, {"MAGNUS_PREDICTION_WINDOW_ROWS": "500", "MAGNUS_PREDICTION_MIN_TRAIN_ROWS": "501"})


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"MAGNUS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/magnus")),
        ({}, Path.home() / ".cache" / "magnus"),
    ],
)
def test_cache_folder_is_in_the_users_cache(environ, path):
    assert cache_dir(environ) == path


def test_an_admin_key_that_is_guessed_easily_is_refused():
    with pytest.raises(SettingsError, match=r"^auth\.admin_key: too short; expected at least 16"):
        load(None, {"MAGNUS_AUTH_ADMIN_KEY": "x" * 15})


SECRET = "sesame-sesame-sesame"


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f'[auth]\nadmin_key = ["{SECRET}"]', {}),
        (f'[auth]\nadmin_key = "{SECRET}"\nadmin_kye = "{SECRET}"', {}),
        (f'[auth]\nadmin_key = "{SECRET}"\n[server]\nhost = "0.0.0.0"', {}),
        ("", {"MAGNUS_AUTH_ADMIN_KEY": SECRET[:15]}),
        ("", {"MAGNUS_AUTH_ADMIN_KYE": SECRET}),
        ("", {"MAGNUS_BACKENDS": f'[{{"name": "a", "api_key": "{SECRET}"}}]'}),
        ("", {"MAGNUS_BACKENDS": f'[{{"api_key": "{SECRET}"'}),
        ("", {"MAGNUS_DATABASE_URL": f"postgresql://u:{SECRET}/@h/d"}),
        (GPU + f'api_key = "{SECRET}"\nkv_tokens = 0', {}),
        (GPU + GPU + f'api_key = "{SECRET}"', {}),
        (GPU.replace("http://gpu-0", f"http://u:{SECRET}@gpu-0/?") + f'api_key = "{SECRET}"', {}),
        (f'[auth]\nadmin_key = "{SECRET}', {}),
    ],
)
def test_no_error_shows_a_secret(config, text, environ):
    with pytest.raises(SettingsError) as refusal:
        load(config(text), environ)
    chain: BaseException | None = refusal.value
    while chain is not None:
        assert SECRET[:15] not in f"{chain!s} {chain!r}"
        chain = chain.__cause__


def names_of_all_settings():
    for section in msgspec.structs.fields(Settings):
        kind = BackendSettings if section.name == "backends" else section.type
        for field in msgspec.structs.fields(kind):
            yield f"{section.name}.{field.name}"


def test_every_section_is_known_to_the_next_test():
    hints = get_type_hints(Settings)
    assert get_args(hints["backends"]) == (BackendSettings,)
    assert len(list(names_of_all_settings())) > 25


@pytest.mark.parametrize("name", list(names_of_all_settings()))
def test_every_setting_is_documented(name):
    pages = [ROOT / "README.md", ROOT / "docs" / "settings.md"]
    assert any(f"`{name}`" in page.read_text(encoding="utf-8") for page in pages if page.exists())


def test_nothing_is_documented_that_cannot_be_set():
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), re.M)
    assert set(rows) <= set(names_of_all_settings())


def test_no_secret_shows_where_settings_are_shown():
    environ = {
        "MAGNUS_AUTH_ADMIN_KEY": "a-secret-of-the-admin",
        "MAGNUS_DATABASE_URL": "postgresql+asyncpg://me:a-secret-password@db/magnus",
        "MAGNUS_BACKENDS": '[{"name": "a", "kind": "vllm", "url": "http://gpu/a-secret-b", "api_key": "a-secret-c"}]',
    }
    shown = repr(load(None, environ))
    assert "a-secret" not in shown
    assert "name='a'" in shown


@pytest.mark.parametrize(
    ("chosen", "environ", "folder"),
    [
        (None, {"XDG_DATA_HOME": "/srv/data"}, Path("/srv/data/magnus")),
        (None, {"XDG_DATA_HOME": "relative"}, Path.home() / ".local/share/magnus"),
        (None, {}, Path.home() / ".local/share/magnus"),
        ("/var/lib/magnus", {"XDG_DATA_HOME": "/srv/data"}, Path("/var/lib/magnus")),
    ],
)
def test_data_is_in_the_users_data_folder_unless_set(chosen, environ, folder):
    settings = Settings(database=DatabaseSettings(data_dir=chosen))
    assert data_dir(settings, environ) == folder
