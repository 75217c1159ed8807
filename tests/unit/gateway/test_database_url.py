import pytest

from gateway.database_url import parse_database_url
from gateway.errors import DatabaseUrlError

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://db", {"host": ["db"]}),
        ("postgres:///x", {"database": "x"}),
        (
            "postgresql+asyncpg://u:p@db:6432/x",
            {"host": ["db"], "port": [6432], "user": "u", "password": "p", "database": "x"},
        ),
        (
            "postgresql://u:a%2Fb%3Fc%23d%40e@db/x",
            {"host": ["db"], "user": "u", "password": "a/b?c#d@e", "database": "x"},
        ),
        ("postgresql://u:p@ss@db/x", {"host": ["db"], "user": "u", "password": "p@ss", "database": "x"}),
        ("postgresql://u:50%off:x@db/x", {"host": ["db"], "user": "u", "password": "50%off:x", "database": "x"}),
        ("postgresql://a:1,b/x", {"host": ["a", "b"], "port": [1, 5432], "database": "x"}),
        ("postgresql://[::1]:6432/x", {"host": ["::1"], "port": [6432], "database": "x"}),
        ("postgresql://%2Frun%2Fpg/x", {"host": ["/run/pg"], "database": "x"}),
        (
            "postgresql://u@/x?host=/run/pg&port=5433",
            {"host": ["/run/pg"], "port": [5433], "user": "u", "database": "x"},
        ),
        (
            "postgresql://?host=a,b&port=5433&user=u&password=p&dbname=x",
            {"host": ["a", "b"], "port": [5433, 5433], "user": "u", "password": "p", "database": "x"},
        ),
    ],
)
def test_address_is_read_as_libpq_reads_it(url, address):
    assert parse_database_url(url).address == address


@pytest.mark.parametrize(
    ("query", "tls"),
    [
        ("sslmode=verify-full&sslrootcert=/ca.pem", {"sslmode": "verify-full", "sslrootcert": "/ca.pem"}),
        ("ssl=require", {"sslmode": "require"}),
        ("sslmode=disable&ssl=require", {"sslmode": "disable"}),
        ("target_session_attrs=read-write&channel_binding=prefer", {"target_session_attrs": "read-write"}),
    ],
)
def test_options_of_tls_are_kept(query, tls):
    assert parse_database_url(f"postgresql://db/x?{query}").tls == tls


def test_session_and_limits_are_kept():
    parsed = parse_database_url("postgresql://db/x?application_name=a%20b&options=-c%20jit%3Doff&connect_timeout=3")
    assert parsed.server_settings == {"application_name": "a b", "options": "-c jit=off"}
    assert parsed.numbers == {"connect_timeout": 3}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"mysql://u:{SECRET}@db/x", "expected"),
        (f"postgresql://u:{SECRET}/w@db:1/x", "%2F"),
        (f"postgresql://u:{SECRET}?w@db/x", "%3F"),
        (f"postgresql://u:12?{SECRET}@db/x", "%3F"),
        (f"postgresql://u:12?{SECRET}=w@db/x", "%3F"),
        (f"postgresql://u:{SECRET}#w@db/x", "%23"),
        (f"postgresql://u:{SECRET} w@db/x", "%20"),
        (f"postgresql://u:{SECRET}@db:port/x", "port"),
        (f"postgresql://u:{SECRET}@db:70000/x", "port"),
        (f"postgresql://u:{SECRET}@::1/x", "brackets|port"),
        (f"postgresql://u:{SECRET}@db/x?sslmode=bogus", "sslmode"),
        (f"postgresql://u:{SECRET}@db/x?ssl=bogus", "ssl"),
        (f"postgresql://u:{SECRET}@db/x?channel_binding=require", "channel_binding"),
        (f"postgresql://u:{SECRET}@db/x?connect_timeout=soon", "connect_timeout"),
        (f"postgresql://u:{SECRET}@db/x?pgbouncer=true", "pgbouncer"),
        (f"postgresql://u:{SECRET}@a,b/x?port=1,2,3", "port"),
        (f"postgresql://u@db/x?password={SECRET}&sslmode", "option=value"),
        (f"postgresql://u@db/x?pass word={SECRET}", "space"),
    ],
)
def test_error_names_the_part_and_not_the_password(url, message):
    with pytest.raises(DatabaseUrlError, match=message) as refused:
        parse_database_url(url)
    assert SECRET not in str(refused.value)
    assert SECRET not in repr(refused.value.__cause__)


def test_repr_shows_no_password():
    assert SECRET not in repr(parse_database_url(f"postgresql://u:{SECRET}@db/x?sslpassword={SECRET}"))
