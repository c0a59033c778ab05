"""Every row of the page "Coming from FastAPI" is a test: here is which."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/how-to/coming-from-fastapi.md"

EVERYWHERE = "tests.unit.declaration.test_everywhere"
SHARED = "tests.unit.declaration.test_shared_dependencies"
REFUSALS = "tests.unit.declaration.test_refusals"
KEPT = "tests.unit.declaration.test_connection_scope"
GUARDS = "tests.unit.adapters.test_fastapi_guards"
AUTH = "tests.unit.security.test_provided_auth"
ROUTERS = "tests.unit.app.test_routers"
APPLICATIONS = "tests.unit.testing.test_applications"
EXPECTATIONS = "tests.unit.testing.test_expectations"
FAILURES = "tests.unit.testing.test_failures"
DISPATCH = "tests.unit.inbound.test_dispatch"
SET = "tests.unit.connection.test_what_is_set"
PLANS = "tests.unit.declaration.test_plans"

TESTS = {
    '`@app.get("/items")`': (PLANS, "test_an_async_handler_without_dependencies_is_called_directly"),
    "a `def` route": ("tests.unit.app.test_sync", "test_handlers_hooks_and_guards_that_are_plain_functions_may_call"),
    "the body's model, a 422 for what does not fit": (
        DISPATCH,
        "test_a_payload_that_does_not_fit_names_the_places_and_the_event",
    ),
    "a return annotation, `response_model=`": (
        "tests.unit.inbound.test_replies",
        "test_a_response_model_takes_the_annotations_place",
    ),
    "a `ConnectionManager` of one's own": (
        "tests.unit.app.test_rooms",
        "test_a_broadcast_reaches_members_and_nobody_else",
    ),
    "`except WebSocketDisconnect`": (
        "tests.unit.inbound.test_handlers_end",
        "test_emit_says_that_and_why_the_connection_has_gone",
    ),
    "`Depends(get_db)`, `Annotated`, nested, cached, `yield`, sync or async": (
        PLANS,
        "test_dependencies_of_every_form_are_provided",
    ),
    "`dependencies=[Depends(…)]` on a route": (
        EVERYWHERE,
        "test_overrides_reach_guards_hooks_middleware_events_and_the_handshake",
    ),
    "`dependencies=[Depends(…)]` on the app": (
        KEPT,
        "test_a_dependency_of_the_handshake_refuses_before_the_accept_and_cleans_up",
    ),
    "`dependencies` of `FastAPI`, `APIRouter`, `include_router`": (
        GUARDS,
        "test_a_guard_refuses_the_socket_exactly_as_it_refuses_fastapis_own",
    ),
    "`APIRouter(prefix=…, tags=…)`, `include_router`": (
        ROUTERS,
        "test_prefix_tags_dependencies_errors_and_middleware_go_from_the_outermost_in",
    ),
    "`dependencies` of a router of events": (
        ROUTERS,
        "test_a_dependency_of_a_router_refuses_each_event_of_it_and_no_other",
    ),
    "a timeout or rate limit around a route": (
        "tests.unit.inbound.test_timeouts",
        "test_the_events_timeout_comes_before_its_routers_and_that_before_the_apps",
    ),
    '`@app.middleware("http")`': (DISPATCH, "test_middleware_runs_outermost_first_and_may_answer_itself"),
    "the lifespan of the application": (
        "tests.e2e.test_mounting",
        "test_the_apps_own_lifespan_runs_inside_the_sockets_and_its_state_reaches_routes",
    ),
    "`request.state`, `app.state`": (
        GUARDS,
        "test_state_of_the_application_and_of_its_middleware_is_seen_by_shared_dependencies",
    ),
    "`CORSMiddleware`": ("tests.unit.security.test_origins", "test_a_listed_origin_may_connect"),
    "`Query()`, `Header()`, `Cookie()`, `Path()`, plain parameters": (
        SHARED,
        "test_a_shared_dependency_gets_what_the_handshake_has_as_fastapi_gives_it",
    ),
    "`Request`, a body, `Form`, `File`": (SHARED, "test_what_a_handshake_has_not_is_refused_at_registration"),
    "`BackgroundTasks`, `Response`": (SHARED, "test_what_a_handshake_has_not_is_refused_at_registration"),
    "`WebSocket`, `HTTPConnection`": (
        SHARED,
        "test_a_view_of_the_handshake_can_neither_accept_nor_send_nor_receive_nor_close",
    ),
    "`request.state.user = …`, `websocket.state`": (SET, "test_metadata_is_each_connections_own"),
    "`raise HTTPException(403)`": (REFUSALS, "test_fastapis_refusals_are_answers_and_the_connection_stays"),
    "`raise WebSocketException(1008)`": (
        GUARDS,
        "test_a_guard_refuses_the_socket_exactly_as_it_refuses_fastapis_own",
    ),
    "`{tenant}` in a path": (GUARDS, "test_variables_of_the_path_reach_handlers_guards_and_dependencies"),
    "`Security(…, scopes=[…])`, `SecurityScopes`": (SHARED, "test_security_scopes_are_collected_on_the_way"),
    "`OAuth2PasswordBearer`, `HTTPBearer`, `APIKeyHeader`, …": (
        SHARED,
        "test_fastapis_security_schemes_read_the_handshake",
    ),
    "a user dependency": (AUTH, "test_the_identity_is_a_dependency_of_http_routes_and_of_events"),
    "`app.dependency_overrides`": (
        GUARDS,
        "test_overrides_of_the_application_reach_its_guards_and_the_sockets_dependencies",
    ),
    "an exception handler": (GUARDS, "test_a_guard_refuses_the_socket_exactly_as_it_refuses_fastapis_own"),
    "`/docs`": ("tests.unit.pages.test_pages", "test_without_a_token_option_everybody_sees_the_page"),
    "`fastapi dev`, `fastapi run`": (
        "tests.e2e.test_dev",
        "test_it_prints_addresses_that_work_with_docs_and_debug_on",
    ),
    "`TestClient(app)`": (APPLICATIONS, "test_the_lifespan_the_guards_the_state_and_the_routes_are_the_applications"),
    '`client.websocket_connect("/ws")`, `receive_json()`': (EXPECTATIONS, "test_what_a_connection_brings"),
    "`app.dependency_overrides[…]` in a test": (
        APPLICATIONS,
        "test_the_lifespan_the_guards_the_state_and_the_routes_are_the_applications",
    ),
    "`raise_server_exceptions=False`": (FAILURES, "test_without_raising_it_is_what_the_client_gets"),
    "a sub-application": (
        GUARDS,
        "test_a_sub_application_is_ready_before_its_first_client_and_stays_stopped_when_it_was_stopped",
    ),
}


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    rows = re.findall(r"^\| (.+?) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows[0] == "in FastAPI"
    assert rows[2:] == list(TESTS)


@pytest.mark.parametrize(("module", "name"), sorted(set(TESTS.values())))
def test_the_test_of_a_row_exists(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))
