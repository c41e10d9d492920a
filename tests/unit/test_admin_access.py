"""Who may use the admin API: by which listener, by which name, and what a page of another origin may send."""

import falcon
import pytest
from falcon.testing import create_req

from app.api.admin.access import AdminAccess, is_own_name

OWN = (
    "127.0.0.1:9090",
    "10.1.2.3",
    "[::1]:9090",
    "[::ffff:10.1.2.3]",
    "localhost",
    "LOCALHOST:9090",
    "localhost.",
    "x.localhost",
    "router",
    "router:9090",
    "router.inference.svc:9090",
    "router.inference.svc.cluster.local.",
    "node.internal",
    "",
)
STRANGERS = (
    "evil.example",
    "evil.example:9090",
    "EVIL.example.",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "svc.evil.example",
    "0x7f.1",
    "127.1",
)


@pytest.mark.parametrize("host", OWN)
def test_address_or_name_of_the_cluster_is_served(host: str) -> None:
    """What no public domain can mean, whatever the port: a page that has this name is one of the operators'."""
    assert is_own_name(host)


@pytest.mark.parametrize("host", STRANGERS)
def test_name_that_may_be_a_strangers_is_refused(host: str) -> None:
    """Its owner can let it point to the router, and a page of theirs would then be of the router's origin."""
    assert not is_own_name(host)
    request = create_req(host=host, port=9090)
    with pytest.raises(falcon.HTTPForbidden):
        AdminAccess("9090", needs_key=False).check(request)
    AdminAccess("9090", needs_key=True).check(request)  # a page of a stranger's has no key
    with pytest.raises(falcon.HTTPNotFound):
        AdminAccess("9091", needs_key=True).check(request)


@pytest.mark.parametrize("origin", ["http://[x", "null", "://", "", "localhost", "http://localhost.evil.example"])
def test_page_of_another_origin_changes_nothing_whatever_it_is_called(origin: str) -> None:
    """An Origin that is no URL is a 403 too, and no error of the router's."""
    sent = {"Content-Type": falcon.MEDIA_JSON, "Origin": origin}
    access = AdminAccess("9090", needs_key=False)
    with pytest.raises(falcon.HTTPForbidden):
        access.check_change(create_req(host="localhost", port=9090, headers=sent))
    access.check_change(create_req(host="localhost", port=9090, headers={**sent, "Origin": "http://localhost:9090"}))
