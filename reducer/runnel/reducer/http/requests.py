"""What people may send as JSON, checked strictly: an unknown field or a value of another type is refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from runnel.common.aggregation import STRATEGIES
from runnel.common.compression import COMPRESSIONS, parse_compression
from runnel.common.protocol import PackageSignature
from runnel.compute_package import signature_of
from runnel.reducer.domain.session_rules import MAX_RANDOM_SEED, MAX_ROUNDS, check_config, parse_sample, parse_stop_rule
from runnel.reducer.domain.values import Role, SessionConfig

Count = Annotated[int, Field(ge=1)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SessionRequest(_Request):
    """A session to start."""

    package: str = Field(min_length=1, description="Digest of a stored compute package; a prefix of 4 or more will do.")
    seed: str = Field(min_length=1, description="Id of a stored model, from which training starts.")
    name: str = Field(default="", max_length=200, description="For people; need not be unique.")
    rounds: int = Field(ge=1, le=MAX_ROUNDS, description="How many rounds to run.")
    strategy: str = Field(default="fedavg", description=f"One of {', '.join(STRATEGIES)}.")
    strategy_options: dict[str, float] = Field(
        default_factory=dict, description="Of the strategy, for example {'learning_rate': 0.1} or {'f': 2}."
    )
    min_clients: Count = Field(default=1, description="Updates that a round needs at least.")
    sample: float | int | str | None = Field(
        default=None,
        description="Clients that a round asks: an integer is a count, a number in (0, 1] with a point a fraction; "
        "null is all of them.",
        examples=[0.5, 10, "1.0"],
    )
    over_select: float = Field(
        default=1.0, description="Ask so many times the sample, and close the round when the sample is in; 1 to 10."
    )
    buffer: Count | None = Field(
        default=None, description="Close a round when this many updates are in; with fedbuff so many make a model."
    )
    round_timeout_s: float = Field(default=600.0, gt=0, description="Seconds from first request to close of a phase.")
    retries: int = Field(default=3, ge=0, description="How often a phase with too few updates is opened again.")
    validate_every: int = Field(default=1, ge=0, description="Validate each n-th round and the last; 0: never.")
    compress: str = Field(
        default="none",
        max_length=40,
        description=f"How clients compress their updates: {COMPRESSIONS}.",
        examples=["int8+zstd", "top-k:0.01"],
    )
    stop_when: str | None = Field(
        default=None, description="End early when a validated metric compares so.", examples=["accuracy>=0.97"]
    )
    client_settings: dict[str, Any] = Field(default_factory=dict, description="Handed to the package as it is.")
    random_seed: int | None = Field(
        default=None, ge=0, le=MAX_RANDOM_SEED, description="Of the sampling of clients; null draws one."
    )
    keep_models: int | None = Field(
        default=None,
        ge=0,
        description="Keep the files of so many newest models, of the seed and of the best by `stop_when`; 0: of all; "
        "null: as the reducer is set.",
    )
    server_functions: bool = Field(
        default=True, description="Whether the package's functions for the server are used, if it has any."
    )

    def config(self) -> SessionConfig:
        """Return the checked configuration; raises InvalidInput or BadSettings that name the field."""
        config = SessionConfig(
            rounds=self.rounds,
            strategy=self.strategy,
            strategy_options=self.strategy_options,
            min_clients=self.min_clients,
            sample=parse_sample(self.sample),
            over_select=self.over_select,
            buffer=self.buffer,
            round_timeout_s=self.round_timeout_s,
            retries=self.retries,
            validate_every=self.validate_every,
            compress=str(parse_compression(self.compress)),
            stop_when=None if self.stop_when is None else parse_stop_rule(self.stop_when),
            client_settings=self.client_settings,
            random_seed=self.random_seed,
            keep_models=self.keep_models,
            server_functions=self.server_functions,
        )
        check_config(config)
        return config


class ExtendRequest(_Request):
    """Rounds to add to a session."""

    rounds: int = Field(ge=1, le=MAX_ROUNDS, description="How many rounds to add.")


class UpdateRequest(_Request):
    """What to change of a session."""

    package: str = Field(
        min_length=1,
        description="Digest of a stored compute package, for the rounds that have not begun; a prefix will do.",
    )


class RetireRequest(_Request):
    """Whether a package may be given to sessions."""

    undo: bool = Field(default=False, description="Let sessions be given it again.")


class SignatureRequest(_Request):
    """Who vouches for a package."""

    public_key: str = Field(max_length=200, description="ed25519: and 64 hexadecimal digits.")
    signature: str = Field(max_length=200, description="128 hexadecimal digits.")

    def read(self) -> PackageSignature:
        """Return it as a value; raises InvalidInput."""
        return signature_of(self.public_key, self.signature)


class TokenRequest(_Request):
    """A token to make."""

    # JSON has no enumerations: the role comes as its name.
    role: Role = Field(strict=False, description="What the token allows.")
    name: str = Field(default="", max_length=200, description="For people: whom or what the token is for.")
    organisation: str | None = Field(default=None, max_length=200, description="null: that of the caller.")
    ttl_s: float | None = Field(default=None, gt=0, description="Seconds until it expires; null: never.")
