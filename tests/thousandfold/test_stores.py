import contextlib
import pathlib

import psutil
import pytest
import redis

from thousandfold import stores


def test_a_store_listens_on_the_loopback_only_and_writes_its_log_every_second(store_url: str) -> None:
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        settings = client.config_get("bind", "appendonly", "appendfsync")
    assert settings == {"bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "everysec"}


def test_a_store_that_is_killed_comes_back_with_what_it_had(tmp_path: pathlib.Path) -> None:
    with stores.running(tmp_path) as store:
        with contextlib.closing(redis.Redis.from_url(store.url)) as client:
            client.set("a", "1")
            assert client.waitaof(1, 0, 5000) == [1, 0]
        store.kill()
        assert store.pid is None
        store.start()
        with contextlib.closing(redis.Redis.from_url(store.url)) as client:
            assert client.get("a") == b"1"


def test_a_store_is_gone_with_its_folder_when_the_block_ends(tmp_path: pathlib.Path) -> None:
    with stores.running(tmp_path) as store:
        pid = store.pid
        assert pid is not None
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert list(tmp_path.iterdir()) == []


def test_a_configured_store_is_used_as_it_is() -> None:
    with stores.chosen("redis://127.0.0.1:1/0") as store:
        assert (store.name, store.url, store.pid) == (stores.EXTERNAL, "redis://127.0.0.1:1/0", None)


def test_no_server_anywhere_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(stores.StoreFailed, match="apt-get install redis-server"), stores.chosen(None, environment={"PATH": ""}):
        pass
