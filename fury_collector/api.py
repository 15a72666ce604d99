"""The HTTP face of the collector, as docs/protocol.md has it: checks what comes in, answers in JSON, holds no SQL."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any, Optional, TypeVar

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from fury_collector import live, wire
from fury_collector.access import READER, Access
from fury_collector.db import Database
from fury_collector.errors import (
    BadInput,
    CollectorError,
    Conflict,
    NotJson,
    TooMany,
    Unauthorized,
    Unavailable,
    Unknown,
)
from fury_collector.metrics import Metrics
from fury_collector.rows import Record
from fury_collector.run import Run

T = TypeVar("T")

POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARD = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Wait:
    """Waits for a future; the server's own kind lets others be served meanwhile."""

    def __call__(self, future: Future[T]) -> T:
        return future.result()


class Recorder:
    """Brings what the run has to record to the database, again if it could not be written."""

    def __init__(self, run: Run, run_ref: int, database: Database) -> None:
        self._run, self._run_ref, self._database = run, run_ref, database
        self._written: list[tuple[list[Record], Future[None]]] = []

    def flush(self) -> Optional[Future[None]]:
        """Queue what is new and what failed; the newest write that is still under way or has failed, if any."""
        failed = [record for records, done in self._written if done.done() and done.exception() for record in records]
        self._written = [(records, done) for records, done in self._written if not done.done()]
        records = failed + self._run.take_outbox()
        if records:
            self._written.append((records, self._database.record(self._run_ref, records)))
        return self._written[-1][1] if self._written else None


def register(
    app: Flask,
    *,
    run: Run,
    recorder: Recorder,
    database: Database,
    metrics: Metrics,
    wait: Wait,
    access: Optional[Access],
) -> None:
    """Put the protocol's routes and JSON errors on the application; without `access`, on loopback, everybody may do all."""
    api = Blueprint("api", __name__)
    agents_own = {"api.ready", "api.events"}
    controllers_own = {"api.stop", "api.close"}

    @app.before_request
    def admit() -> None:
        if access is None or request.endpoint == "api.healthz":
            return
        shown = request.headers.get("Authorization")
        if request.endpoint in agents_own:
            access.admit_agent(str((request.view_args or {})["name"]), shown, revoked=run.revoked)
        elif request.endpoint in controllers_own:
            access.admit_controller(shown)
        else:  # what does not exist is not told to strangers either
            access.admit_reader(shown)

    def settle() -> None:
        """Wait until everything up to now is on disk: nobody is told of a start that a crash could forget."""
        written = recorder.flush()
        if written is not None:
            wait(written)

    def known(run_id: str) -> None:
        if run_id != run.run_id:
            raise Unknown(f"this collector serves run {run.run_id} and no other")

    @api.post("/api/v1/runs/<run_id>/agents/<name>/ready")
    def ready(run_id: str, name: str) -> Response:
        arrived = run.now()
        known(run_id)
        run.agent_id(name)
        answer = run.ready(name, wire.ready(_body()))
        settle()
        now = run.now()  # the commit took its time: the answer is to be right when it leaves
        if "start_in_s" in answer:
            answer["start_in_s"] -= now - answer["collector_mono_s"]
        answer["collector_mono_s"] = now
        answer["held_s"] = now - arrived
        return _json(answer)

    @api.post("/api/v1/runs/<run_id>/agents/<name>/events")
    def events(run_id: str, name: str) -> Response:
        began = time.perf_counter()
        try:
            known(run_id)
            agent_id = run.agent_id(name)
            batch = wire.batch(_body())
            run.heard(name, batch.epoch)
            result = wait(database.store(agent_id, batch))
        except (BadInput, Conflict, Unknown, NotJson, RequestEntityTooLarge) as error:
            metrics.refused.inc()
            if isinstance(error, Conflict):
                run.conflict(name, error)
                recorder.flush()
            raise
        except Unavailable as error:
            run.trouble(error)
            raise
        command = run.stored(name, batch.epoch, result)
        recorder.flush()
        metrics.pushes.inc()
        metrics.stored.inc(len(result.fresh))
        metrics.duplicates.inc(result.duplicates)
        metrics.duration.observe(time.perf_counter() - began)
        return _json(
            {
                "stored": len(result.fresh),
                "duplicates": result.duplicates,
                "receipt": result.receipt,
                "command": command,
            }
        )

    @api.get("/api/v1/runs/<run_id>")
    def state(run_id: str) -> Response:
        known(run_id)
        return _json(run.snapshot())

    @api.post("/api/v1/runs/<run_id>/stop")
    def stop(run_id: str) -> Response:
        known(run_id)
        run.stop(wire.reason(_body()))
        settle()
        return _json({"state": run.state})

    @api.post("/api/v1/runs/<run_id>/close")
    def close(run_id: str) -> Response:
        known(run_id)
        run.close()
        return _json({"state": run.state})

    @api.get("/api/v1/targets")
    def targets() -> Response:
        return _json(run.targets())

    @api.get("/metrics")
    def scrape() -> Response:
        return Response(metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "ok"})

    @app.after_request
    def guard(response: Response) -> Response:
        if request.endpoint in agents_own and response.status_code == 200:
            return response  # no browser ever sees it, and there are thousands a second
        response.headers.update(GUARD)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    app.register_blueprint(api)
    app.register_blueprint(live.blueprint(run))
    _register_errors(app)


def _register_errors(app: Flask) -> None:
    @app.errorhandler(CollectorError)
    def refused(error: CollectorError) -> Response:
        response = _error(error.status, error.message, error.field)
        if isinstance(error, (Unavailable, TooMany)):
            response.headers["Retry-After"] = "1"
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = f'{error.scheme} realm="{READER}"'
        return response

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        if isinstance(error, RequestEntityTooLarge):
            return _error(status, f"the body is larger than {wire.MAX_BODY_BYTES} bytes: send fewer events at once")
        if isinstance(error, MethodNotAllowed):
            allowed = ", ".join(error.valid_methods or ())
            response = _error(status, f"{request.method} is not for this path: use {allowed}")
            response.headers["Allow"] = allowed
            return response
        if status == 404:
            return _error(status, "there is nothing at this path: docs/protocol.md lists those that exist")
        if status == 500:  # Flask has logged the exception
            return _error(status, "the collector failed to answer this: its log says why")
        return _error(status, error.description or error.name)


def _body() -> Any:
    if request.mimetype != "application/json":
        raise NotJson(f"the content type must be application/json, not {wire.shown(request.mimetype)}")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise NotJson("the body must not be encoded: send plain JSON without Content-Encoding")
    raw = request.get_data(cache=False)
    # Chunks say nowhere how many there are: Werkzeug stops reading them at the limit without a word.
    if request.content_length is None and len(raw) >= wire.MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return wire.loads(raw)


def _json(value: Any, status: int = 200) -> Response:
    return Response(wire.dumps(value), status=status, content_type="application/json")


def _error(status: int, sentence: str, field: Optional[str] = None) -> Response:
    return _json({"error": sentence, "field": field}, status)
