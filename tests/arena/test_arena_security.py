"""What the server refuses, and what it never tells."""

import json
import re
import time

import pytest
from starlette.testclient import TestClient
from studies import study_of

from neighbor_grpo.arena.guard import MOST_BYTES, Address, Limit
from neighbor_grpo.arena.rating import Rating, Rules
from neighbor_grpo.arena.server import Server
from neighbor_grpo.arena.signing import Seal
from neighbor_grpo.arena.store import Store

ORIGIN = "http://127.0.0.1:8080"
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("study"))


@pytest.fixture
def serve(study, tmp_path):
    """Return a function that makes a server at an address."""
    made = []

    def serve(address=None, clock=time.time):
        made.append(
            Server(
                Rating(Store.serving(str(tmp_path / "v.db"), study.info), Rules()),
                study,
                address or Address("127.0.0.1"),
                clock,
            )
        )
        return made[0]

    yield serve
    for server in made:
        server.worker.stop()
        server.rating.store.close()


class Rater(TestClient):
    """Ask as the browser of a rater does."""

    def __init__(self, server, base_url=ORIGIN, **values):
        super().__init__(server.app(), base_url, follow_redirects=True, headers={"origin": base_url, **values})

    def begin(self, name="Ada", **form):
        page = self.post("/join", data={"name": name, **form}, headers=HTML)
        found = re.search(r'data-csrf="([^"]+)"', page.text)
        if found:
            self.headers["x-csrf"] = found[1]
        return page

    def pair(self):
        return self.get("/pair").json()

    def vote(self, token, answer="left", **more):
        return self.post("/vote", json={"assignment": token, "answers": {"overall": answer, **more}})


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def rater(server):
    rater = Rater(server)
    assert rater.begin().status_code == 200
    return rater


def test_a_vote(server, rater):
    turn = rater.pair()
    reply = rater.vote(turn["token"])
    assert reply.status_code == 200 and reply.json()["done"] == 1
    assert [vote.answer for vote in server.rating.store.votes()] == ["left"]


def test_headers_of_every_reply(rater):
    pair = rater.pair()
    for path in ("/", "/pair", f"/picture/{pair['left']}", "/static/arena.js", "/none"):
        headers = rater.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == ("no-cache" if "static" in path else "no-store")
        assert "server" not in headers


def test_pages_hold_no_script_and_no_style(rater, server):
    for page in (rater.get("/").text, Rater(server).get("/").text):
        assert not re.search(r"<script(?![^>]*src=)|<style| on\w+=| style=", page)


def test_the_cookie_is_for_this_page_only(serve):
    cookie = Rater(serve()).begin().history[0].headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie


def test_the_cookie_of_a_page_behind_https(serve):
    server = serve(Address("127.0.0.1", "https://arena.example.org"))
    rater = Rater(server, "https://arena.example.org")
    page = rater.begin(key=server.seal.key)
    assert page.status_code == 200 and "secure" in page.history[0].headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://127.0.0.1:9999", "http://127.0.0.1.evil.example:8080"]
)
def test_votes_from_other_pages(server, rater, origin):
    token = rater.pair()["token"]
    rater.headers["origin"] = origin
    assert rater.vote(token).status_code == 403 and server.rating.store.votes() == []


def test_votes_without_the_token_of_the_page(server, rater):
    token = rater.pair()["token"]
    other = Rater(server)
    other.begin("Bob")
    for csrf in ("", "x", other.headers["x-csrf"], rater.cookies["arena"]):
        rater.headers["x-csrf"] = csrf
        assert rater.vote(token).status_code == 403
    assert server.rating.store.votes() == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "192.168.0.1", "[::1"])
def test_names_that_were_made_to_point_here(server, host):
    reply = Rater(server).get("/", headers={"host": host})
    assert reply.status_code == 421 and "content-security-policy" in reply.headers


@pytest.mark.parametrize(
    ("address", "host", "served"),
    [
        (Address("0.0.0.0"), "192.168.0.1:8080", True),
        (Address("0.0.0.0"), "evil.example", False),
        (Address("0.0.0.0", "https://arena.example.org"), "arena.example.org", True),
        (Address("lab.example"), "lab.example:8080", True),
        (Address("::1"), "[::1]:8080", True),
        (Address("127.0.0.1"), "localhost:8080", True),
    ],
)
def test_hosts(address, host, served):
    assert address.serves(host) == served
    assert address.exposed == (address.host not in ("127.0.0.1", "::1"))


def test_a_page_that_others_can_reach_asks_for_its_key(serve):
    server = serve(Address("0.0.0.0"))
    for key in ("", "x", "é" * 32):
        assert Rater(server).get("/", params={"key": key}).status_code == 403
        assert Rater(server).begin(key=key).status_code == 403
    key = server.seal.key
    assert f'value="{key}"' in Rater(server).get(f"/?key={key}").text
    assert Rater(server).begin(key=key).status_code == 200
    chinese = Rater(server).get(f"/?lang=zh&key={key}")
    assert key in str(chinese.url) and 'lang="zh-CN"' in chinese.text
    assert "key=" not in str(Rater(server).get("/?lang=zh&key=x").url)


def test_invitations(serve):
    now = [1000.0]
    server = serve(Address("0.0.0.0"), lambda: now[0])
    seal = Seal(server.rating.store.secret)
    token = seal.invitation("Ada <b>", 2000)
    assert "Ada &lt;b&gt;" in Rater(server).get(f"/join/{token}").text
    for _ in range(2):  # on another device too
        assert Rater(server).begin(invitation=token).status_code == 200
    assert [rater.name for rater in server.rating.raters.values()] == ["Ada <b>"]
    body, signature = token.split(".")
    forged = f"{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    for wrong in (forged, "x", seal.session(1), Seal("other").invitation("Ada", 2000)):
        assert Rater(server).get(f"/join/{wrong}").status_code == 403
        assert Rater(server).begin(invitation=wrong).status_code == 403
    now[0] = 2001
    for page in (Rater(server).get(f"/join/{token}"), Rater(server).begin(invitation=token)):
        assert page.status_code == 403 and "expired" in page.text


def test_names(serve):
    server = serve()
    assert Rater(server).begin().status_code == 200
    taken = Rater(server).begin()
    assert taken.status_code == 409 and "Another rater has this name" in taken.text
    for name in ("", " ", "x" * 65, "a\x00b"):
        assert Rater(server).begin(name).status_code == 400
    assert len(server.rating.raters) == 1


def test_cookies_that_are_not_ours(server, rater):
    for cookie in (
        "",
        "1",
        Seal("other").session(1),
        Seal(server.rating.store.secret).csrf(1),
        Seal(server.rating.store.secret).session(99),
    ):
        stranger = Rater(server)
        stranger.cookies.set("arena", cookie)
        assert stranger.get("/pair").status_code == 401 and stranger.get("/").text.count("<form") == 1


def test_pictures_are_seen_by_their_rater_while_they_are_shown(server, rater):
    other = Rater(server)
    other.begin("Bob")
    turn = rater.pair()
    path = f"/picture/{turn['left']}"
    shown = rater.get(path)
    assert shown.headers["content-type"] == "image/png" and shown.content.startswith(b"\x89PNG")
    assert other.get(path).status_code == 404 and Rater(server).get(path).status_code == 401
    rater.vote(turn["token"])
    assert rater.get(path).status_code == 404
    for name in ("..%2F..%2Fetc%2Fpasswd", "0000-seed0.png", "..%2Fstatic%2Farena.js"):
        assert rater.get(f"/picture/{name}").status_code == 404
        assert rater.get(f"/static/{name}").status_code == 404


def test_nothing_tells_the_model(server, rater, study):
    turn = rater.pair()
    told = json.dumps(turn) + rater.get("/").text
    told += "".join(str(rater.get(f"/picture/{turn[side]}").headers) for side in ("left", "right"))
    assert not any(name in told for name in (*study.info.models, "seed", str(study.files[0, 0, 0].parent)))


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b'{"assignment": 3, "answers": {"overall": "left"}}', b'{"assignment": "x"}', b"[" * 10_000,
     b'{"assignment": "x", "answers": {"overall": "best"}}', b'{"assignment": "x", "answers": {"overall": ["left"]}}',
     b'{"assignment": "x", "answers": {}}', b'{"assignment": "x", "answers": {"overall": "left", "more": "left"}}'],
)  # fmt: skip
def test_votes_that_are_none(server, rater, body):
    reply = rater.post("/vote", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and "error" in reply.json() and server.rating.store.votes() == []


def test_large_bodies_and_other_types(rater):
    large = b"x" * (MOST_BYTES + 1)
    assert rater.post("/vote", content=large, headers={"content-type": "application/json"}).status_code == 413
    assert rater.post("/join", content=large, headers=HTML).status_code == 413
    assert rater.post("/vote", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert rater.get("/vote").status_code == 405


def test_votes_are_limited_by_rate(server, rater):
    server.votes = Limit(burst=3, rate=0.01)
    replies = [rater.post("/undo", json={"assignment": "x"}, headers=HTML) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert int(replies[-1].headers["retry-after"]) > 10 and "<h1>" in replies[-1].text


def test_a_limit():
    now = [0.0]
    limit = Limit(burst=2, rate=0.5, clock=lambda: now[0])

    def allowed(who):
        try:
            limit.check(who)
        except Exception as error:
            assert error.headers == {"Retry-After": "2"}
            return False
        return True

    assert [allowed("a") for _ in range(3)] == [True, True, False] and allowed("b")
    now[0] = 2
    assert [allowed("a") for _ in range(2)] == [True, False]
    now[0] = 100
    assert [allowed("a") for _ in range(3)] == [True, True, False]


def test_a_vote_that_cannot_be_saved_is_not_acknowledged(server, rater, monkeypatch):
    token = rater.pair()["token"]
    with server.rating.store.database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    reply = rater.vote(token)
    assert reply.status_code == 503 and "could not be saved" in reply.json()["error"]
    assert rater.vote(token).json()["done"] == 1  # the connection was made again


def test_texts_are_whole():
    from neighbor_grpo.arena.texts import LANGUAGES, QUESTIONS, TEXTS

    assert TEXTS.keys() == LANGUAGES.keys()
    for texts in TEXTS.values():
        assert texts.keys() == TEXTS["en"].keys() >= set(QUESTIONS)
        assert all(
            set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", TEXTS["en"][key])) for key, text in texts.items()
        )
