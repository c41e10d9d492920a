"""Brings the objects of one resource to what is planned, and writes its status."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from router_controller.api import Api
from router_controller.backoff import delay_s
from router_controller.compare import as_planned, owned_fields
from router_controller.errors import ApiFailure, Conflict
from router_controller.events import Events
from router_controller.kinds import (
    AUTOSCALER,
    CHILDREN,
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_SERVICE,
    SCALED_OBJECT,
    SERVICE,
    SERVICE_ACCOUNT,
    Key,
    Kind,
    Object,
)
from router_controller.metrics import RECONCILE_SECONDS, RECONCILES, WRITES
from router_controller.plan import Defaults, child_name, plan
from router_controller.status import Failure, Failures, Observed, explain, status_of
from router_controller.store import Store

LONGEST_DELAY_S = 60.0

_NEEDED = frozenset({SERVICE_ACCOUNT, SERVICE, CONFIG_MAP, DEPLOYMENT})
"""Without one of these, those after it are left alone: no pods with a foreign ConfigMap, no autoscaler on a foreign
Deployment."""

_log = structlog.get_logger(part="reconcile")


class Reconciler:
    """`stores` holds what is watched, of all kinds."""

    def __init__(self, api: Api, stores: Mapping[Kind, Store], defaults: Defaults, events: Events) -> None:
        self._api = api
        self._stores = stores
        self._defaults = defaults
        self._events = events
        self._failed: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        """Until when the API server asked for a pause (Retry-After), by the clock `time.monotonic`."""

    async def reconcile(self, key: Key) -> float | None:
        """Returns the seconds after which to try again, or None: all is as planned, or there is nothing to do."""
        resource = self._stores[INFERENCE_SERVICE].get(key)
        if resource is None or "deletionTimestamp" in resource["metadata"]:
            # Its objects have it as their owner: the garbage collector of Kubernetes deletes them.
            self._failed.pop(key, None)
            self._not_before.pop(key, None)
            self._events.forget(key)
            return None
        pause_s = self._not_before.get(key, 0.0) - time.monotonic()
        if pause_s > 0:  # a change of the resource cuts a back-off short, but not what the API server asked for
            return pause_s
        with RECONCILE_SECONDS.time():
            failures = await self._attempt(resource)
        RECONCILES.labels("failure" if failures else "success").inc()
        self._not_before.pop(key, None)
        if not failures:
            self._failed.pop(key, None)
            return None
        return await self._put_off(key, resource, failures)

    async def _attempt(self, resource: Object) -> Failures:
        failures: Failures = []
        try:
            try:
                await self._converge(resource, failures)
            except Exception as error:  # noqa: BLE001  # whatever one resource brings up must not end the others
                _log.exception("reconcile raised", resource=resource["metadata"]["name"])
                failures.append((INFERENCE_SERVICE, ApiFailure(0, "InternalError", f"{type(error).__name__}: {error}")))
            await self._report(resource, failures)
        except ApiFailure as failure:
            if failure.status != 404:  # the resource was deleted in the meantime
                failures.append((INFERENCE_SERVICE, failure))
        return failures

    async def _put_off(self, key: Key, resource: Object, failures: Failures) -> float:
        failed = self._failed[key] = self._failed.get(key, 0) + 1
        asked_s = max((failure.retry_after_s for _, failure in failures if isinstance(failure, ApiFailure)), default=0)
        if asked_s:
            self._not_before[key] = time.monotonic() + asked_s
        pause_s = delay_s(failed, LONGEST_DELAY_S, asked_s)
        kind, failure = failures[0]
        reason = "Conflict" if isinstance(failure, Conflict) else failure.reason
        message = explain(kind, failure)
        pause = round(pause_s, 1)
        _log.warning("reconcile failed", resource="/".join(key), reason=reason, error=message, again_in_s=pause)
        await self._events.warn(resource, reason, message)
        return pause_s

    async def _converge(self, resource: Object, failures: Failures) -> None:
        planned = plan(resource, self._defaults)
        if not self._stores[SCALED_OBJECT].available and SCALED_OBJECT in planned:
            del planned[SCALED_OBJECT]
            failures.append((SCALED_OBJECT, ApiFailure(0, "KindMissing", "KEDA is not installed")))
        # What is needed first; then what must go, such as the old autoscaler, before what comes in its place.
        for kind in sorted(CHILDREN, key=lambda kind: (kind not in _NEEDED, kind in planned)):
            if not self._stores[kind].available:
                continue
            try:
                if kind in planned:
                    await self._converge_one(kind, planned[kind], resource)
                elif kind.deletable and not failures:
                    await self._delete(kind, resource)
            except (ApiFailure, Conflict) as failure:
                failures.append((kind, failure))
                if kind in _NEEDED or _is_overloaded(failure):
                    break

    async def _converge_one(self, kind: Kind, body: Object, resource: Object) -> None:
        store, metadata = self._stores[kind], body["metadata"]
        live = store.get((metadata["namespace"], metadata["name"]))
        if live is None:
            live = await self._look_up(kind, metadata["namespace"], metadata["name"])
        if live is None:
            await self._create(kind, body)
            return
        _must_own(live, resource)
        if "deletionTimestamp" in live["metadata"]:
            raise ApiFailure(0, "Terminating", f"{metadata['name']} is being deleted")
        # With the UID, an object that somebody else has made in its place in the meantime is left alone (409).
        precondition = {"uid": live["metadata"]["uid"]}
        if kind is DEPLOYMENT and _replicas_are_owned(body, live):
            body = body | {"spec": body["spec"] | {"replicas": live["spec"]["replicas"]}}
            precondition["resourceVersion"] = live["metadata"]["resourceVersion"]
        if as_planned(live, body):
            return
        applied = await self._api.apply(kind, body | {"metadata": metadata | precondition}, force=True)
        self._wrote(kind, "apply", applied)
        if not as_planned(applied, body):
            raise ApiFailure(0, "Changed", f"{metadata['name']} was changed while it was written, by a webhook?")

    async def _look_up(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Returns an object that lacks the controller's label, and is not watched therefore."""
        _, items = await self._api.list(kind, namespace, fields=f"metadata.name={name}")
        return items[0] if items else None

    async def _create(self, kind: Kind, body: Object) -> None:
        """Make an object that does not exist.

        Server-side apply can't be told to create only. Should somebody make one of this name since the look-up, then
        without `force` every field that differs, as the label of the manager does, is a conflict.
        """
        try:
            made = await self._api.apply(kind, body, force=False)
        except ApiFailure as failure:
            if failure.status == 409 and failure.reason == "Conflict":
                raise Conflict(f"{body['metadata']['name']} was made by somebody else: {failure.message}") from failure
            raise
        self._wrote(kind, "create", made)

    def _wrote(self, kind: Kind, verb: str, item: Object) -> None:
        self._stores[kind].put(item)
        WRITES.labels(kind.name, verb).inc()
        metadata = item["metadata"]
        _log.info(f"{verb} {kind.name}", name=f"{metadata['namespace']}/{metadata['name']}")

    async def _delete(self, kind: Kind, resource: Object) -> None:
        metadata = resource["metadata"]
        name = child_name(kind, metadata["name"])
        live = self._stores[kind].get((metadata["namespace"], name))
        if live is None or "deletionTimestamp" in live["metadata"] or not _owns(live, resource):
            return
        try:
            await self._api.delete(kind, metadata["namespace"], name, live["metadata"]["uid"])
        except ApiFailure as failure:
            if failure.status not in {404, 409}:  # gone, or another one by now
                raise
        WRITES.labels(kind.name, "delete").inc()
        _log.info(f"delete {kind.name}", name=f"{metadata['namespace']}/{name}")

    async def _report(self, resource: Object, failures: Failures) -> None:
        observed = Observed(
            deployment=self._owned_child(DEPLOYMENT, resource),
            autoscaler=self._owned_child(AUTOSCALER, resource),
            scaled_object=self._owned_child(SCALED_OBJECT, resource),
            failures=failures,
        )
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = status_of(resource, observed, now)
        if status == resource.get("status"):
            return
        metadata = {name: resource["metadata"][name] for name in ("name", "namespace", "uid")}
        body = {
            "apiVersion": INFERENCE_SERVICE.api_version,
            "kind": INFERENCE_SERVICE.name,
            "metadata": metadata,
            "status": status,
        }
        written = await self._api.apply_status(INFERENCE_SERVICE, body)
        if written["metadata"]["generation"] == resource["metadata"]["generation"]:
            # With a spec that was changed meanwhile, the watch must bring it: what is known already is no news.
            self._stores[INFERENCE_SERVICE].put(written)
        WRITES.labels(INFERENCE_SERVICE.name, "status").inc()

    def _owned_child(self, kind: Kind, resource: Object) -> Object | None:
        metadata = resource["metadata"]
        live = self._stores[kind].get((metadata["namespace"], child_name(kind, metadata["name"])))
        return live if live and _owns(live, resource) else None


def _is_overloaded(failure: Failure) -> bool:
    return isinstance(failure, ApiFailure) and (failure.status == 429 or failure.reason == "Unreachable")


def _owns(live: Object, resource: Object) -> bool:
    owners = live["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == resource["metadata"]["uid"] and owner.get("controller") for owner in owners)


def _must_own(live: Object, resource: Object) -> None:
    if not _owns(live, resource):
        raise Conflict(f"{live['metadata']['name']} exists and does not belong to this InferenceService")


def _replicas_are_owned(body: Object, live: Object) -> bool:
    """Returns whether the number of pods, which is not planned, is still the controller's.

    `autoscalerClass` was `none` then, and an autoscaler is to take over. To leave the number out at once would set it
    to 1, the default; so it is applied as it is. The first scaling takes the field away from the controller, and it is
    left out from then on. The version of the object makes the write fail if that has just happened.
    """
    return "replicas" not in body["spec"] and "f:replicas" in owned_fields(live).get("f:spec", {})
