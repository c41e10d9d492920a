"""The routes file that a spec stands for (docs/routing.md of the router)."""

import msgspec

from router_controller.kinds import Object

STABLE = "stable"
CANARY = "canary"
CONNECT_S = 5
"""The router's default for the time to connect, in seconds."""


def routes_text(namespace: str, spec: Object) -> str:
    """Returns the routes file, as JSON. Equal specs give equal texts."""
    return msgspec.json.format(msgspec.json.encode(_routes(namespace, spec), order="sorted"), indent=2).decode() + "\n"


def discovers(spec: Object) -> bool:
    """Returns whether the router asks the Kubernetes API for endpoints, for which it needs a token."""
    routes = spec.get("routes")
    if routes is None:
        return any("service" in spec.get(name, {}) for name in ("model", "canary"))
    models = _items(routes, "models")
    return any("service" in item for model in models for item in (model, *_items(model, "versions")))


def _routes(namespace: str, spec: Object) -> Object:
    if "routes" in spec:
        routes: Object = spec["routes"]
        return routes
    stated = spec["model"]
    model: Object = {"name": stated["name"], "protocol": stated.get("protocol", "openai")}
    if "timeout" in spec:
        model["timeouts"] = {"total_s": spec["timeout"]}
        if spec["timeout"] < CONNECT_S:  # the router takes no timeout for a connection that is longer than the whole
            model["timeouts"]["connect_s"] = spec["timeout"]
    if "canary" not in spec:
        return {"models": [model | _endpoints(namespace, stated)]}
    share = spec.get("canaryTrafficPercent", 0)
    canary = {"name": CANARY, "weight": share} | _endpoints(namespace, spec["canary"])
    if spec["canary"].get("name", stated["name"]) != stated["name"]:
        canary["upstream_model"] = spec["canary"]["name"]
    model["versions"] = [{"name": STABLE, "weight": 100 - share} | _endpoints(namespace, stated), canary]
    return {"models": [model]}


def _endpoints(namespace: str, model: Object) -> Object:
    if "endpoints" in model:
        return {"endpoints": model["endpoints"]}
    if "dns" in model:
        return {"dns": model["dns"]}
    service = model["service"]
    return {
        "service": f"{service.get('namespace', namespace)}/{service['name']}",
        "port": str(service["port"]),
    }


def _items(parent: Object, name: str) -> list[Object]:
    items = parent.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
