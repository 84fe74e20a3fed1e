"""From the settings to an `Identifier`: whose tokens and keys are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core import bearer
from ..core.bearer import ASYMMETRIC, GATEWAY_ISSUER, SIGNING_AUDIENCE, Issuer, gateway_issuer
from ..core.keys import token_key, token_key_id
from ..providers.fetch import Fetcher
from ..providers.jwks import KeySet
from ..settings import IssuerSettings, Settings
from .dear import DearWork
from .identity import Identifier


def make_identifier(
    settings: Settings, fetcher: Fetcher, *, previous: Identifier | None = None
) -> Identifier:
    """The identifier that *settings* describe.

    Args:
        previous: The one that it replaces while the gateway runs: keys that were fetched
            from issuers that are still configured are kept.
    """
    auth, tokens = settings.auth, settings.tokens
    keys = {}
    for master in (auth.master_key, auth.previous_master_key):
        if master:
            key = token_key(master)
            keys[token_key_id(key)] = key
    ours = gateway_issuer(GATEWAY_ISSUER, keys, not_before=tokens.not_before)
    signing = gateway_issuer(
        GATEWAY_ISSUER, keys, audience=SIGNING_AUDIENCE, not_before=tokens.not_before
    )
    issuers = {GATEWAY_ISSUER: ours}
    key_sets: dict[str, KeySet] = {}
    for each in auth.issuers:
        known: Mapping[str | None, Any] = {}
        if each.jwks_url is not None:
            key_set = _key_set(each, fetcher, previous)
            key_sets[each.issuer] = key_set
            known = key_set.keys
        else:
            known = _configured_keys(each)
        issuers[each.issuer] = Issuer(
            issuer=each.issuer,
            audience=each.audience,
            algorithms=each.algorithms,
            keys=known,
            leeway=each.leeway,
            max_age=each.max_age,
            required=each.required_claims,
            typ=each.typ,
        )
    return Identifier(
        master=auth.master_key,
        previous_master=auth.previous_master_key,
        keys=auth.keys,
        issuers=issuers,
        signing=signing,
        key_sets=key_sets,
        denied_subjects=frozenset(tokens.denied_subjects),
        signatures=settings.sigv4.enabled,
        dear=DearWork(auth.failure_limit),
        regions=frozenset(settings.sigv4.regions) or None,
        hosts=frozenset(settings.server.hosts) or None,
        host_aliases=settings.sigv4.host_aliases,
    )


def _key_set(settings: IssuerSettings, fetcher: Fetcher, previous: Identifier | None) -> KeySet:
    assert settings.jwks_url is not None
    if previous is not None:
        kept = previous.key_sets.get(settings.issuer)
        if kept is not None and kept.url == settings.jwks_url:
            kept.stale_for = settings.jwks_stale_for
            return kept
    return KeySet(settings.jwks_url, fetcher, stale_for=settings.jwks_stale_for)


def _configured_keys(settings: IssuerSettings) -> dict[str | None, Any]:
    found: dict[str | None, Any] = {}
    if settings.secret is not None:
        found[None] = settings.secret.encode()
    for path in settings.public_keys:
        name = None if len(settings.public_keys) == 1 else path.stem
        found[name] = _public_key(path.read_bytes(), settings.algorithms)
    return found


def _public_key(pem: bytes, algorithms: tuple[str, ...]) -> Any:
    for algorithm in algorithms:
        if algorithm in ASYMMETRIC:
            try:
                return bearer.public_key(algorithm, pem)
            except ValueError:
                continue
    raise ValueError("a public key fits none of the algorithms of its issuer")
