"""What counts as a secret in a URL or an option, and what is shown in its place."""

import uuid

import pytest

from storage.root import StorageError, check_options, open_root, resolve_options
from storage.secrets import redacted, redacted_value, secret_in

SECRET = "hunter2-5f0c"

OPEN = [
    "ftp://me:{}@host/x",
    "ftp://me@corp.com:{}@host/x",  # an address as the user's name
    "ftp://me:a/{}@host/x",
    "https://{}@host/x",  # a token alone
    "HTTPS://me%3A{}@host/x",
    "simplecache::sftp://me:{}@host/x",
    "zip://a.zip::https://me:{}@host/a.zip",
    "https://host/x?X-Amz-Signature={}&X-Amz-Date=1",
    "https://host/x?a=1&x-amz-security-token={}",
    "https://host/x?X%2DAmz%2DCredential={}",
    "https://host/x?AWSAccessKeyId={}&Expires=1",
    "https://host/x?Expires=1&Signature={}",
    "https://account.blob.core.windows.net/c/x?sv=2022&sig={}",
    "https://host/x?X-Goog-Signature={}",
    "https://host/x?token={}",
    "https://host/x?a=1;access_token={}",
    "https://host/x#id_token={}",
    "https://host/x?api-key={}",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=core.windows.net",
]

HARMLESS = [
    "data/VOC2007",
    "data/token=5/part.parquet",
    "s3://bucket/path",
    "s3://arn:aws:s3:eu-west-1:1:accesspoint/voc/a@b",
    "sftp://me@host/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "http://127.0.0.1:9000/a@b",
    "http://[::1]:9000/a@b",
    "memory://a@b/c:d@e",
    "s3://bucket/x?versionId=3",
    "https://host/x?sig=",
    "C://x@y",
]


@pytest.mark.parametrize("url", OPEN)
def test_what_grants_access_is_found_and_not_shown(url):
    text = url.format(SECRET)
    found = secret_in(text)
    assert found is not None
    assert SECRET not in found
    assert SECRET not in redacted(f"root '{text}' cannot be read (see {text}): no such host")
    assert "cannot be read" in redacted(f"root '{text}' cannot be read")
    assert SECRET not in str(redacted_value({"path": text, "argv": ["--set", f"dataset.path={text}"]}))
    assert redacted_value(redacted_value(text)) == redacted_value(text)


@pytest.mark.parametrize("url", HARMLESS)
def test_other_places_are_left_as_they_are(url):
    assert secret_in(url) is None
    assert redacted_value(url) == url
    assert redacted(f"root {url!r} is empty") == f"root {url!r} is empty"


def test_what_is_redacted_is_no_secret():
    assert secret_in("ftp://***@host/x") is None
    assert redacted("https://me:x@host/a?sig=b&c=d") == "https://***@host/a?sig=***&c=d"


def test_a_long_text_takes_no_time():
    for text in ("a" * 50_000, "a:" * 30_000, "a://" * 20_000, "https://h?" + "k&" * 30_000, "x://a:b" * 10_000):
        redacted(text)
        secret_in(text)


@pytest.mark.parametrize(
    "options",
    [
        {"connection_string": SECRET},
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {"passwd": SECRET},
        {"pass": SECRET},
        {"auth": ["me", SECRET]},
        {"pin": 5_318_008},
        {"client_kwargs": {"auth": {"login": "me", "word": SECRET}}},
        {"target_options": {"client_kwargs": [{"headers": [SECRET]}]}},
        {"sas_token": SECRET},
        {"endpoint_url": f"http://me:{SECRET}@host"},
        {"fo": f"https://host/x?sig={SECRET}"},
        {"proxies": {"https": f"http://me:{SECRET}@proxy"}},
        {"key": f"env:{SECRET}/+="},
        {"some_day_invented": SECRET},
    ],
)
def test_an_option_that_may_be_a_secret_is_refused(options):
    for attempt in (lambda: check_options(options), lambda: open_root("memory://x", options)):
        with pytest.raises(StorageError, match=r"^storage_options\.\S+ .*: env:NAME$") as error:
            attempt()
        assert SECRET not in str(error.value)


def test_options_that_hold_none_may_stand_in_the_open():
    check_options(
        {
            "anon": True,
            "endpoint_url": "http://127.0.0.1:9000",
            "profile": "voc",
            "use_ssl": False,
            "client_kwargs": {"region_name": "eu-west-1", "verify": False},
            "config_kwargs": {
                "connect_timeout": 5,
                "retries": {"max_attempts": 10},
                "s3": {"addressing_style": "path"},
            },
            "secret": "env:VOC_SECRET",
            "auth": ["env:VOC_USER", "env:VOC_PASSWORD"],
            "some_day_invented": True,
        }
    )


def test_what_came_from_the_environment_is_never_shown(monkeypatch):
    secret = f"s3cr/t {uuid.uuid4().hex}"
    monkeypatch.setenv("SPP_TEST_SECRET", secret)
    monkeypatch.setenv("SPP_TEST_REGION", "eu-west-1-here")
    options = {"headers": {"Authorization": ["env:SPP_TEST_SECRET"]}, "region": "env:SPP_TEST_REGION"}
    assert resolve_options(options)["headers"] == {"Authorization": [secret]}
    assert redacted(f"403: {secret} is no key of eu-west-1-here") == "403: *** is no key of eu-west-1-here"
    assert secret not in redacted_value([{"error": secret}])[0]["error"]
    assert redacted_value(secret, known=False) == secret, "a config is read again"
