"""Session options and the clock that says when to ping, warn and close."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError, dataclass, field, fields
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.errors import ConfigurationError
from socketspec.session import Session, SessionConfig
from socketspec.session.clock import Action, SessionClock

A = Action


def run(
    clock: SessionClock, until: float, events: dict[float, str] | None = None, *, start: float = 0.0, step: float = 0.5
) -> list[tuple[float, Action]]:
    """Drive `clock` as the engine does: `due` is called only at the deadline that was last asked for."""
    log: list[tuple[float, Action]] = []
    timer = clock.next_deadline()
    for number in range(int((until - start) / step) + 1):
        now = start + number * step
        for event in (events or {}).get(now, "").split():
            if event.startswith("token"):
                clock.token_refreshed(None if event == "token-none" else now + float(event.removeprefix("token+")))
                timer = clock.next_deadline()
            else:
                clock.last_heard = now
                if event == "active":
                    clock.last_active = now
        if timer is not None and now >= timer:
            log += [(now, action) for action in clock.due(now)]
            timer = clock.next_deadline()
            assert timer is None or timer > now
    return log


def make(
    config: SessionConfig | None = None,
    *,
    expires_at: float | None = None,
    token_expires_at: float | None = None,
    heartbeat_interval: float | None = None,
) -> SessionClock:
    clock = SessionClock(config or SessionConfig(), now=0.0, heartbeat_interval=heartbeat_interval)
    clock.session_resumed(expires_at, 0.0)
    clock.token_refreshed(token_expires_at)
    return clock


def test_the_defaults_limit_nothing_and_leave_the_heartbeat_to_the_engine() -> None:
    assert {each.name: getattr(SessionConfig(), each.name) for each in fields(SessionConfig)} == {
        "max_duration": None,
        "idle_timeout": None,
        "heartbeat_interval": None,
        "heartbeat_timeout": 10,
        "token_refresh_window": 60,
        "idle_warning": 30,
        "expiry_warning": 60,
    }


def test_the_config_of_the_how_to_is_accepted_and_cannot_be_changed() -> None:
    config = SessionConfig(
        max_duration=3600, idle_timeout=300, heartbeat_interval=25, heartbeat_timeout=10, token_refresh_window=60
    )
    with pytest.raises(FrozenInstanceError):
        config.max_duration = 1  # type: ignore[misc]  # that it is frozen is what is tested


BAD: list[Any] = [-1, True, float("nan"), float("inf"), "300", timedelta(seconds=5), 10**400, 1e300]


@pytest.mark.parametrize("name", [each.name for each in fields(SessionConfig)])
@pytest.mark.parametrize("value", BAD, ids=lambda value: str(value)[:12])
def test_a_bad_value_is_refused_with_its_name_and_the_fix(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}=.*seconds \(int or float\)") as caught:
        SessionConfig(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["idle_warning", "expiry_warning"])
def test_a_warning_can_be_turned_off_with_zero(name: str) -> None:
    assert getattr(SessionConfig(**{name: 0}), name) == 0


LIMITS = ["max_duration", "idle_timeout", "heartbeat_interval", "heartbeat_timeout", "token_refresh_window"]
NO_NONE = ["heartbeat_timeout", "token_refresh_window", "idle_warning", "expiry_warning"]


@pytest.mark.parametrize(("name", "value"), [*((name, 0) for name in LIMITS), *((name, None) for name in NO_NONE)])
def test_zero_and_none_are_refused_where_they_mean_nothing(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        SessionConfig(**{name: value})


def test_a_session_has_a_secret_id_of_its_own_that_its_repr_does_not_show() -> None:
    before = time.time()
    first, second = Session(), Session()
    assert first.id != second.id
    assert len(first.id) == 32
    assert first.id not in repr(first)
    assert before <= first.started_at <= time.time()
    assert first.expires_at is None
    assert first.config == SessionConfig()


BEAT = {"heartbeat_interval": 25.0}


@pytest.mark.parametrize(
    ("config", "times", "events", "expected"),
    [
        pytest.param(SessionConfig(), {}, {}, [], id="nothing is limited"),
        pytest.param(
            SessionConfig(), BEAT, {}, [(25.0, A.PING), (35.0, A.HEARTBEAT_TIMEOUT)], id="an unanswered ping ends it"
        ),
        pytest.param(
            SessionConfig(),
            BEAT,
            {26.0: "pong", 60.0: "pong", 90.0: "pong"},
            [(25.0, A.PING), (51.0, A.PING), (85.0, A.PING)],
            id="a ping comes after silence",
        ),
        pytest.param(
            SessionConfig(),
            BEAT,
            dict.fromkeys([0.0, 20.0, 40.0, 60.0, 80.0], "active"),
            [],
            id="activity spares the ping",
        ),
        pytest.param(
            SessionConfig(heartbeat_timeout=25),
            {"heartbeat_interval": 10.0},
            {},
            [(10.0, A.PING), (20.0, A.PING), (30.0, A.PING), (35.0, A.HEARTBEAT_TIMEOUT)],
            id="further pings do not extend the time to answer the first",
        ),
        pytest.param(
            SessionConfig(heartbeat_timeout=10),
            BEAT,
            {25.0: "pong", 60.0: "pong", 95.0: "pong"},
            [(50.0, A.PING), (85.0, A.PING)],
            id="being heard at the very time of the deadline is in time",
        ),
        pytest.param(
            SessionConfig(idle_timeout=80),
            {},
            {},
            [(50.0, A.IDLE_WARNING), (80.0, A.IDLE_TIMEOUT)],
            id="an idle client is warned, then closed",
        ),
        pytest.param(
            SessionConfig(idle_timeout=40),
            {},
            {},
            [(20.0, A.IDLE_WARNING), (40.0, A.IDLE_TIMEOUT)],
            id="no idle warning before half time",
        ),
        pytest.param(
            SessionConfig(idle_timeout=40, idle_warning=0), {}, {}, [(40.0, A.IDLE_TIMEOUT)], id="no idle warning"
        ),
        pytest.param(
            SessionConfig(idle_timeout=60),
            {},
            {50.0: "active"},
            [(30.0, A.IDLE_WARNING), (80.0, A.IDLE_WARNING)],
            id="activity arms the idle warning again",
        ),
        pytest.param(
            SessionConfig(idle_timeout=60),
            {},
            {59.5: "pong"},
            [(30.0, A.IDLE_WARNING), (60.0, A.IDLE_TIMEOUT)],
            id="a pong is no activity",
        ),
        pytest.param(
            SessionConfig(max_duration=300),
            {"expires_at": 90.0},
            {},
            [(30.0, A.EXPIRY_WARNING), (90.0, A.SESSION_EXPIRED)],
            id="a session ends, with a warning",
        ),
        pytest.param(
            SessionConfig(max_duration=60),
            {"expires_at": 60.0},
            {},
            [(30.0, A.EXPIRY_WARNING), (60.0, A.SESSION_EXPIRED)],
            id="no expiry warning before half time",
        ),
        pytest.param(
            SessionConfig(max_duration=3600),
            {"expires_at": 10.0},
            {},
            [(0.0, A.EXPIRY_WARNING), (10.0, A.SESSION_EXPIRED)],
            id="a late return is warned at once",
        ),
        pytest.param(SessionConfig(), {"expires_at": -5.0}, {}, [(0.0, A.SESSION_EXPIRED)], id="over before it began"),
        pytest.param(
            SessionConfig(),
            {"token_expires_at": 100.0},
            {},
            [(40.0, A.TOKEN_WARNING), (100.0, A.TOKEN_EXPIRED)],
            id="an old token ends it",
        ),
        pytest.param(
            SessionConfig(),
            {"token_expires_at": 20.0},
            {},
            [(0.0, A.TOKEN_WARNING), (20.0, A.TOKEN_EXPIRED)],
            id="in the window the warning comes at once",
        ),
        pytest.param(
            SessionConfig(token_refresh_window=10),
            {"token_expires_at": 20.0},
            {15.0: "token+30", 40.0: "token+30"},
            [(10.0, A.TOKEN_WARNING), (35.0, A.TOKEN_WARNING), (60.0, A.TOKEN_WARNING), (70.0, A.TOKEN_EXPIRED)],
            id="each new token is warned about",
        ),
        pytest.param(
            SessionConfig(), {"token_expires_at": 90.0}, {10.0: "token-none"}, [], id="a token without an end"
        ),
        pytest.param(
            SessionConfig(token_refresh_window=10),
            {"token_expires_at": 500.0},
            {10.0: "token+20"},
            [(20.0, A.TOKEN_WARNING), (30.0, A.TOKEN_EXPIRED)],
            id="a new token may end earlier than the old one",
        ),
    ],
)
def test_the_clock_asks_for_each_thing_once_and_in_time(
    config: SessionConfig, times: dict[str, float], events: dict[float, str], expected: list[tuple[float, Action]]
) -> None:
    assert run(make(config, **times), 101.0, events) == expected


def test_a_closing_action_comes_alone_and_the_earliest_deadline_wins() -> None:
    clock = make(
        SessionConfig(idle_timeout=50, heartbeat_timeout=1),
        expires_at=40.0,
        token_expires_at=45.0,
        heartbeat_interval=10.0,
    )
    assert clock.due(1000.0) == [A.SESSION_EXPIRED]
    assert clock.due(2000.0) == []
    assert clock.next_deadline() is None
    clock.token_refreshed(5000.0)
    assert clock.next_deadline() is None


def test_closing_actions_with_one_deadline_are_chosen_in_a_fixed_order() -> None:
    assert make(SessionConfig(idle_timeout=50), expires_at=50.0, token_expires_at=50.0).due(50.0) == [A.TOKEN_EXPIRED]
    assert make(SessionConfig(idle_timeout=50), expires_at=50.0).due(50.0) == [A.SESSION_EXPIRED]


def test_several_warnings_come_together_in_the_order_of_their_deadlines() -> None:
    clock = make(
        SessionConfig(idle_timeout=200, max_duration=200),
        expires_at=200.0,
        token_expires_at=190.0,
        heartbeat_interval=175.0,
    )
    assert clock.due(180.0) == [A.TOKEN_WARNING, A.EXPIRY_WARNING, A.IDLE_WARNING, A.PING]
    assert clock.due(180.0) == []


def test_a_timer_that_fires_after_activity_finds_nothing_to_do() -> None:
    clock = make(SessionConfig(idle_timeout=100, idle_warning=0), heartbeat_interval=30.0)
    clock.last_heard = clock.last_active = 29.0
    assert clock.due(30.0) == []
    assert clock.next_deadline() == 59.0


def test_a_pong_with_the_same_time_as_its_ping_is_an_answer() -> None:
    clock = make(heartbeat_interval=25.0)
    assert clock.due(25.0) == [A.PING]
    clock.last_heard = 25.0
    assert clock.next_deadline() == 50.0
    assert clock.due(35.0) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expiry_that_is_no_time_is_refused_rather_than_never_reached(value: float) -> None:
    with pytest.raises(ValueError, match="expires_at"):
        make(expires_at=value)
    with pytest.raises(ValueError, match="token_expires_at"):
        make(token_expires_at=value)
    clock = make(token_expires_at=10.0)
    with pytest.raises(ValueError, match="token_expires_at"):
        clock.token_refreshed(value)
    assert (clock.expires_at, clock.token_expires_at) == (None, 10.0)


@dataclass
class Model:
    """The rules written down anew: looks at everything in every step and remembers all that ever happened."""

    config: SessionConfig
    expires_at: float | None
    token_expires_at: float | None
    interval: float | None
    heard: list[float] = field(default_factory=lambda: [0.0])
    active: list[float] = field(default_factory=lambda: [0.0])
    tokens: list[float] = field(default_factory=lambda: [-1.0])
    log: list[tuple[float, Action]] = field(default_factory=list[tuple[float, Action]])

    def times(self, action: Action) -> list[float]:
        return [when for when, happened in self.log if happened is action]

    def closing(self) -> list[tuple[float, Action]]:
        found: list[tuple[float, Action]] = []
        unanswered = [when for when in self.times(A.PING) if when > self.heard[-1]]
        if unanswered:
            found.append((unanswered[0] + self.config.heartbeat_timeout, A.HEARTBEAT_TIMEOUT))
        if self.config.idle_timeout is not None:
            found.append((self.active[-1] + self.config.idle_timeout, A.IDLE_TIMEOUT))
        if self.expires_at is not None:
            found.append((self.expires_at, A.SESSION_EXPIRED))
        if self.token_expires_at is not None:
            found.append((self.token_expires_at, A.TOKEN_EXPIRED))
        return found

    def warnings(self, serial: int) -> list[tuple[float, Action]]:
        found: list[tuple[float, Action]] = []
        config = self.config
        if self.interval is not None:
            found.append((max([*self.times(A.PING), self.heard[-1]]) + self.interval, A.PING))
        if config.idle_timeout is not None and config.idle_warning:
            before = min(config.idle_warning, config.idle_timeout / 2)
            if not any(when >= self.active[-1] for when in self.times(A.IDLE_WARNING)):
                found.append((self.active[-1] + config.idle_timeout - before, A.IDLE_WARNING))
        if self.expires_at is not None and config.expiry_warning and not self.times(A.EXPIRY_WARNING):
            whole = config.max_duration or max(self.expires_at, 0.0)
            found.append((self.expires_at - min(config.expiry_warning, whole / 2), A.EXPIRY_WARNING))
        if self.token_expires_at is not None and self.tokens[-1] != serial:
            found.append((self.token_expires_at - config.token_refresh_window, A.TOKEN_WARNING))
        return found

    def step(self, now: float, serial: int) -> bool:
        """Whether the connection goes on."""
        ended = sorted(entry for entry in self.closing() if entry[0] <= now)
        if ended:
            self.log.append((now, ended[0][1]))
            return False
        for _, action in sorted(entry for entry in self.warnings(serial) if entry[0] <= now):
            self.log.append((now, action))
            if action is A.TOKEN_WARNING:
                self.tokens.append(serial)
        return True


def brute_force(model: Model, until: float, events: dict[float, str]) -> list[tuple[float, Action]]:
    serial = 0
    for number in range(int(until / 0.5) + 1):
        now = number * 0.5
        for event in events.get(now, "").split():
            if event.startswith("token"):
                model.token_expires_at = None if event == "token-none" else now + float(event.removeprefix("token+"))
                serial += 1
            else:
                model.heard.append(now)
                if event == "active":
                    model.active.append(now)
        if not model.step(now, serial):
            break
    return model.log


seconds = st.integers(1, 60).map(float)
maybe_seconds = st.none() | seconds
configs = st.builds(
    SessionConfig,
    max_duration=maybe_seconds,
    idle_timeout=maybe_seconds,
    heartbeat_timeout=seconds,
    token_refresh_window=seconds,
    idle_warning=st.integers(0, 40).map(float),
    expiry_warning=st.integers(0, 40).map(float),
)
one_event = st.sampled_from(["active", "active", "pong", "pong", "token-none", "token+5", "token+25", "token+70"])
histories = st.dictionaries(
    st.integers(0, 240).map(lambda half: half / 2), st.lists(one_event, max_size=3).map(" ".join), max_size=60
)


@given(
    config=configs,
    expires_at=st.none() | st.integers(-3, 100).map(float),
    token_expires_at=st.none() | st.integers(-3, 100).map(float),
    interval=st.none() | st.integers(1, 30).map(float),
    events=histories,
)
def test_the_clock_agrees_with_a_model_that_looks_every_half_second(
    config: SessionConfig,
    expires_at: float | None,
    token_expires_at: float | None,
    interval: float | None,
    events: dict[float, str],
) -> None:
    clock = make(config, expires_at=expires_at, token_expires_at=token_expires_at, heartbeat_interval=interval)
    model = Model(config, expires_at, token_expires_at, interval)
    assert run(clock, 120.0, events) == brute_force(model, 120.0, events)
