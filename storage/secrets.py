"""Secrets: what may not stand in the open in a config, a command or a record, and what is shown in its place.

One rule. A URL with a password, or with a query that grants access, is refused where it is given, and shown as ``***``
wherever text goes out. A storage option is ``env:NAME``, unless its key is known to be harmless; what such a variable
held is shown nowhere either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
"""What is shown in place of a secret."""

_NO_SECRETS = """
of every file system, and of those that cache another one:
asynchronous auto_mkdir batch_size block_size blocksize cache_check cache_options cache_storage cache_type check_files
compression default_block_size default_cache_type default_fill_cache encoding expiry_time fo listings_expiry_time
max_block max_paths maxblocks mode protocol same_names skip_instance_cache target_options target_protocol
use_listings_cache
S3:
acl addressing_style anon api_version cache_regions checksumalgorithm client_kwargs config_kwargs connect_timeout
endpoint_url fixed_upload_size max_attempts max_concurrency max_pool_connections parameter_validation
payload_signing_enabled profile read_timeout region region_name request_checksum_calculation requester_pays requestpayer
response_checksum_validation retries s3 s3_additional_kwargs serversideencryption signature_version storageclass
tcp_keepalive use_accelerate_endpoint use_dualstack_endpoint use_ssl verify version_aware
Google's and Azure's stores:
access account_host account_name assume_container_exists cache_timeout check_connection client_id consistency
connection_timeout default_location location_mode project requests_timeout secure_serialize tenant_id timeout total
trust_env
HTTP, FTP, SSH, SMB, HDFS, Git:
allow_agent branch domain extra_conf host key_filename look_for_keys org port realm ref replication repo same_scheme sha
share_access simple_links size_policy ssl temppath tls user username
"""
HARMLESS = frozenset(word for line in _NO_SECRETS.splitlines() if not line.endswith(":") for word in line.split())
"""Storage options that hold no secret, in lower case, at any depth. Of others only true, false and nothing may stand in
the open."""

_SCHEME = r"(?<![A-Za-z0-9])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40})://"
_CHAINED = r"(?!::[A-Za-z][A-Za-z0-9+.-]{0,40}://)"
_IN_TEXT = re.compile(rf"{_SCHEME}(?P<rest>(?:{_CHAINED}\S)*)")
_ALONE = re.compile(rf"{_SCHEME}(?P<rest>(?:{_CHAINED}[\s\S])*)")
_PORT = re.compile(r"\d{0,5}")
_PARAMETER_IN_TEXT = re.compile(r"(?<=[?&;#])(?P<name>[^=&;#?\s]+)=(?P<value>[^&;#\s'\"<>)\]},]*)")
_PARAMETER_ALONE = re.compile(r"(?<=[?&;#])(?P<name>[^=&;#?]+)=(?P<value>[^&;#]*(?:;(?![^=&;#?]+=)[^&;#]*)*)")
_GRANTS = re.compile(
    r"(?:key|code|o?auth|jwt|bearer|pass|pwd|sig)"
    r"|.*(?:signature|token|secret|passw|credential|access_?key|api_?key|auth_?key|account_?key|shared_?access"
    r"|googleaccessid).*",
    re.IGNORECASE,
)
"""Names of parameters whose value lets whoever has it in, after ``-`` has become ``_``."""
_CONNECTION = re.compile(
    r"\b(?P<name>AccountKey|SharedAccessKey|SharedAccessSignature|SharedSecretValue|password|pwd)\s*=\s*(?P<value>[^;\s]+)",
    re.IGNORECASE,
)
"""Azure's connection strings, and those of data bases."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_LEAST = 6
"""Characters of a secret, at least: what is shorter would be found in many a word."""
_known: set[str] = set()
"""What this process has taken from the environment as secrets."""


def secret_in(text: str) -> str | None:
    """What grants access in a path, a URL or a chain of URLs, in words that do not repeat it; None if nothing does.

    A password before ``@`` (of HTTP, where it stands for a token, also a lone name), a signature, token or key among
    the parameters, a connection string. A lone user name is none: it is an SSH user, or an Azure container.
    """
    for found in _ALONE.finditer(text):
        rest = found["rest"]
        if _user_info(found["scheme"], rest):
            return "a password or token"
        for parameter in _PARAMETER_ALONE.finditer(rest):
            if parameter["value"] and _grants(parameter["name"]):
                return f"the parameter {unquote(parameter['name'])!r} (it grants access)"
    connection = _CONNECTION.search(text)
    return f"the {connection['name']} of a connection string" if connection and ";" in text else None


def redacted(text: str) -> str:
    """Text for people, a message or a line of a log, with ``***`` in place of what ``secret_in`` finds in its URLs, and
    of what was taken from the environment as a secret."""
    return _without_known(_IN_TEXT.sub(lambda found: _hidden(found, _PARAMETER_IN_TEXT), _without_connections(text)))


def redacted_value(value: Any, known: bool = True) -> Any:
    """A JSON value, such as the config of a record, each string of it redacted as a whole; keys stay.

    ``known``: without what was taken from the environment, too. A config that is read again must do without.
    """
    if isinstance(value, str):
        text = _without_connections(value) if ";" in value else value
        text = _ALONE.sub(lambda found: _hidden(found, _PARAMETER_ALONE), text)
        return _without_known(text) if known else text
    if isinstance(value, Mapping):
        shown = {name: _option(name, one) if name == "storage_options" else one for name, one in value.items()}
        return {name: redacted_value(one, known) for name, one in shown.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_value(one, known) for one in value]
    return value


def open_options(options: Mapping[str, Any], where: str = "storage_options") -> Iterator[tuple[str, str]]:
    """Key (``where.name``) and problem of each storage option that stands in the open and may be a secret."""
    for name, value in options.items():
        yield from _open_values(f"{where}.{name}", str(name).lower() in HARMLESS, value)


def is_variable(name: str) -> bool:
    """Whether an environment variable can be called so."""
    return _VARIABLE.fullmatch(name) is not None


def keep_secrets(options: Mapping[str, Any]) -> None:
    """Have the values that storage options take from the environment left out of whatever this process says."""
    for name, value in options.items():
        _keep(str(name), value)


def _keep(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        keep_secrets(value)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _keep(name, one)
    elif isinstance(value, str) and value.startswith("env:") and name.lower() not in HARMLESS:
        secret = os.environ.get(value.removeprefix("env:"), "")
        if len(secret) >= _LEAST:
            _known.update((secret, quote(secret, safe="")))


def _option(name: str, value: Any) -> Any:
    """A storage option of an old record, what stands in the open in it hidden."""
    if isinstance(value, Mapping):
        return {inner: _option(str(inner), one) for inner, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_option(name, one) for one in value]
    return HIDDEN if any(_open_values(name, name.lower() in HARMLESS, value)) else value


def _open_values(where: str, harmless: bool, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        yield from open_options(value, where)
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _open_values(f"{where}[{number}]", harmless, one)
    elif isinstance(value, str) and value.startswith("env:"):
        if not is_variable(value.removeprefix("env:")):
            yield where, "has no name of an environment variable after env:"
    elif isinstance(value, str) and harmless:
        found = secret_in(value)
        if found is not None:
            yield where, f"holds {found} in the open"
    elif not (value is None or isinstance(value, bool) or harmless):
        yield where, "looks like a secret, or is no option that is known to hold none"


def _hidden(url: re.Match[str], parameters: re.Pattern[str]) -> str:
    scheme, rest = url["scheme"], url["rest"]
    info = _user_info(scheme, rest)
    if info:
        rest = f"{HIDDEN}@{rest[info:]}"
    rest = parameters.sub(
        lambda found: f"{found['name']}={HIDDEN}" if found["value"] and _grants(found["name"]) else found[0], rest
    )
    return f"{scheme}://{rest}"


def _user_info(scheme: str, rest: str) -> int:
    """Characters of user, password and ``@`` at the beginning of a URL's ``rest``; 0 if there is no password."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        info = authority[: authority.rindex("@")]
        secret = ":" in unquote(info) or (scheme.lower() in ("http", "https") and info)
        return len(info) + 1 if secret and info.removeprefix(f"{HIDDEN}") else 0
    _, colon, port = authority.partition(":")
    odd = colon and not authority.startswith(("[", "arn:")) and not _PORT.fullmatch(port)
    return rest.rindex("@") + 1 if odd and "@" in rest else 0  # a password with a slash in it


def _grants(name: str) -> bool:
    return _GRANTS.fullmatch(unquote(name).strip().replace("-", "_")) is not None


def _without_connections(text: str) -> str:
    return _CONNECTION.sub(lambda found: f"{found['name']}={HIDDEN}", text)


def _without_known(text: str) -> str:
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
