"""The server as other programs see it: what it does, whom it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from onnx_repfuse.cli import serve as serve_command
from onnx_repfuse.cli.main import main
from tests.build import Net
from tests.serve.running import ROOT, running

TRAIN, DEPLOY = ROOT / "models" / "repvgg.train.onnx", ROOT / "models" / "repvgg.deploy.onnx"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    with running(tmp_path_factory.mktemp("serve"), "--max-size", "1") as server:
        yield server


@pytest.fixture
def server(lasting):
    yield lasting
    for job in lasting.json("GET", "jobs")["jobs"]:
        lasting.json("DELETE", f"jobs/{job['id']}")
    assert lasting.left() == []


def small_model(channels=4):
    """A Conv and a factor, which become one Conv."""
    net = Net(channels)
    return net.model(net.op("Mul", net.conv("x", channels, channels, 3), net.const(2.0)))


def test_folds_a_model(server):
    job = server.create()
    assert server.put(job, TRAIN.name, TRAIN.read_bytes()) == 204
    assert server.json("POST", f"jobs/{job}/start") is None
    shown = server.until(job)
    assert shown["answer"] == {"exit_code": 0, "verdict": "passed", "error": ""}
    assert shown["models"] == [TRAIN.name]
    (file,) = shown["files"]
    assert file["name"] == "repvgg.train.fused.onnx"
    status, headers, data = server.ask("GET", f"jobs/{job}/files/{file['name']}")
    assert (status, len(data)) == (200, file["bytes"])
    assert headers["Content-Disposition"] == 'attachment; filename="repvgg.train.fused.onnx"'
    assert [node.op_type for node in onnx.load_from_string(data).graph.node].count("BatchNormalization") == 0
    _, headers, text = server.ask("GET", f"jobs/{job}/json")
    document = json.loads(text)
    files = document["environment"]["files"]
    assert [file["role"] for file in files] == ["input", "output"]
    assert b".repfuse-" not in text  # the folder of the upload is nobody's business
    assert (document["command"], document["model"], document["output"]) == ("fuse", TRAIN.name, file["name"])
    assert headers["Content-Disposition"] == 'attachment; filename="repvgg.train.fuse.json"'
    _, headers, page = server.ask("GET", f"jobs/{job}/report")
    assert b"repvgg.train.fused.onnx" in page
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'; ")
    for told in (text, page):  # the user's names, and not where the server has put the files
        assert str(server.folder).encode() not in told
    assert server.json("DELETE", f"jobs/{job}") is None
    assert server.ask("GET", f"jobs/{job}/files/{file['name']}")[0] == 404
    assert server.left() == []


def test_compares_two_models(server):
    shown = server.run(TRAIN, DEPLOY, kind="compare", layers=True)
    assert (shown["answer"]["exit_code"], shown["answer"]["verdict"]) == (0, "passed")
    assert (shown["models"], shown["files"], shown["report"]) == ([TRAIN.name, DEPLOY.name], [], True)
    document = json.loads(server.ask("GET", f"jobs/{shown['id']}/json")[2])
    assert document["comparison"]["layers"] is not None


def test_two_models_that_differ(server):
    model = small_model()
    other = onnx.ModelProto.FromString(model.SerializeToString())
    other.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(
        np.float32(1.5) * onnx.numpy_helper.to_array(model.graph.initializer[-1]), model.graph.initializer[-1].name
    ))  # fmt: skip
    files = [("same.onnx", part.SerializeToString()) for part in (model, other)]
    shown = server.run(*files, kind="compare")
    assert (shown["answer"]["exit_code"], shown["answer"]["verdict"]) == (3, "failed")
    assert (shown["answer"]["error"], shown["report"]) == ("the two models differ", True)


def test_a_model_with_its_data_file(server, tmp_path):
    place = {"save_as_external_data": True, "location": "net.bin", "size_threshold": 0}
    onnx.save(small_model(16), tmp_path / "net.onnx", **place)
    job = server.create()
    for name in ("net.bin", "net.onnx"):
        assert server.put(job, name, (tmp_path / name).read_bytes()) == 204
    server.json("POST", f"jobs/{job}/start")
    shown = server.until(job)
    assert shown["answer"]["verdict"] == "passed", shown
    assert "net.fused.onnx" in {file["name"] for file in shown["files"]}
    assert len(shown["files"]) == 2
    lone = server.run(tmp_path / "net.onnx")
    assert lone["answer"]["verdict"] == "error"
    assert "net.bin" in lone["answer"]["error"]


def test_data_files_that_the_model_names_in_folders(server, tmp_path):
    (tmp_path / "weights" / "deep").mkdir(parents=True)
    place = {"save_as_external_data": True, "location": "weights/deep/net.bin", "size_threshold": 0}
    onnx.save(small_model(16), tmp_path / "net.onnx", **place)
    job = server.create()
    for file in (tmp_path / "net.onnx", tmp_path / "weights" / "deep" / "net.bin"):
        assert server.put(job, file.name, file.read_bytes()) == 204
    server.json("POST", f"jobs/{job}/start")
    shown = server.until(job)
    assert shown["answer"]["verdict"] == "passed", shown
    lone = server.run(tmp_path / "net.onnx")
    assert lone["answer"]["error"] == (
        "net.onnx has weights in 'weights/deep/net.bin', which did not come with it: "
        "drop or choose the model and its data files together"
    )


def test_errors_name_files_as_they_were_uploaded(server, tmp_path):
    place = {"save_as_external_data": True, "location": "w/net.bin", "size_threshold": 0}
    (tmp_path / "w").mkdir()
    onnx.save(small_model(16), tmp_path / "net.onnx", **place)
    job = server.create()
    for name, data in (("net.onnx", (tmp_path / "net.onnx").read_bytes()), ("net.bin", b"too short")):
        assert server.put(job, name, data) == 204
    server.json("POST", f"jobs/{job}/start")
    error = server.until(job)["answer"]["error"]
    assert "'w/net.bin'" in error, error
    assert ".repfuse-" not in error


def test_settings_reach_the_run(server):
    model = ("m.onnx", small_model().SerializeToString())
    shown = server.run(model, thorough=True, input_shape="x:1,4,9,9")
    assert shown["answer"]["verdict"] == "passed", shown
    document = json.loads(server.ask("GET", f"jobs/{shown['id']}/json")[2])
    assert "[1, 4, 9, 9]" in str(document["verification"]["shapes"])
    shown = server.run(model, input_shape="nonsense")
    assert (shown["answer"]["exit_code"], shown["answer"]["verdict"]) == (2, "error")
    assert "nonsense" in shown["answer"]["error"]


def test_a_file_that_is_no_model(server):
    shown = server.run(("photo.onnx", b"no model" * 100))
    assert (shown["state"], shown["answer"]["exit_code"], shown["answer"]["verdict"]) == ("done", 1, "error")
    assert "not an ONNX model" in shown["answer"]["error"]
    assert (shown["files"], shown["report"]) == ([], False)
    assert server.ask("GET", f"jobs/{shown['id']}/report")[0] == 404


def test_files_that_would_be_imported_are_not(server):
    """Modules beside the model, by the names of those that the process imports."""
    job = server.create()
    for name in ("json.py", "onnx.py", "numpy.py"):
        assert server.put(job, name, b"raise SystemExit('imported')") == 204
    assert server.put(job, "m.onnx", small_model().SerializeToString()) == 204
    server.json("POST", f"jobs/{job}/start")
    assert server.until(job)["answer"]["verdict"] == "passed"


def hosts(port):
    return ["evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "", f"127.0.0.1.:{port}",
            f"localhost.evil.example:{port}", f"[::1]:{port}", f"0.0.0.0:{port}"]  # fmt: skip


def test_the_host_header_is_checked(server):
    """Or a page of another site could let its own name point to this machine, and read all."""
    for host in hosts(server.port):
        status, headers, body = server.ask("GET", "", headers={"Host": host})
        assert status == 421, host
        assert server.token.encode() not in body
        assert "Content-Security-Policy" in headers
    local = f"localhost:{server.port}"
    assert server.ask("GET", "", headers={"Host": local})[0] == 200
    assert server.ask("POST", "jobs", "{", headers={"Host": local, "Origin": f"http://{local}"})[0] == 400


def test_the_token_is_checked(server):
    token = server.token
    for path in ("/", "/jobs", f"/{token[:-1]}/", f"/{token}x/", f"//{token}/", f"/x/../{token}/", "/%00/", "/%C3%A9/",
                 f"/{token.swapcase()}/", "/page.js", "/style.css", "/favicon.ico", f"/?{token}"):  # fmt: skip
        status, headers, body = server.ask("GET", "", whole=path)
        assert status == 404, path
        assert token.encode() not in body
        assert headers["Referrer-Policy"] == "no-referrer"
    assert server.ask("GET", "", whole=f"/{token}")[1]["Location"] == f"/{token}/"


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1:1",
               "http://127.0.0.1", "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example"],
)  # fmt: skip
def test_requests_of_other_pages_do_nothing(server, origin):
    """The browser says which page has sent a request."""
    job = server.create()
    headers = {"Origin": origin.format(port=server.port) if origin else origin}
    for method, path in (
        ("POST", "jobs"),
        ("PUT", f"jobs/{job}/files/first/m.onnx"),
        ("POST", f"jobs/{job}/start"),
        ("DELETE", f"jobs/{job}"),
    ):
        status, answer, _ = server.ask(method, path, '{"kind": "fuse"}', headers=headers)
        assert status == 403, (method, path)
        assert "Access-Control-Allow-Origin" not in answer
    assert server.ask("OPTIONS", "jobs", headers=headers)[0] in (403, 405)
    assert [(shown["id"], shown["state"]) for shown in server.json("GET", "jobs")["jobs"]] == [
        (job, "uploading")
    ]
    assert server.left() == []


def test_every_answer_forbids_what_the_page_does_not_need(server):
    job = server.create()
    answers = [
        server.ask("GET", path)
        for path in ("", "page.js", "style.css", "jobs", "nonsense", f"jobs/{job}/json")
    ]
    answers += [server.ask("POST", "jobs", "["), server.ask("PATCH", "jobs")]
    for status, headers, _ in answers:
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; "), status
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Server" not in headers


def test_uploads_have_a_limit(server):
    """1 MB here, whether the size is announced or not, and over all files of a job."""
    job = server.create()
    assert server.put(job, "large.onnx", bytes(1_000_001)) == 413
    chunks = iter([bytes(600_000)] * 2)
    assert server.put(job, "streamed.onnx", chunks) == 413
    assert server.left() == []
    server.json("DELETE", f"jobs/{job}")
    job = server.create()
    assert server.put(job, "a.bin", bytes(600_000)) == 204
    assert server.put(job, "b.bin", bytes(600_000)) == 413
    server.json("DELETE", f"jobs/{job}")
    assert server.ask("POST", "jobs", bytes(100_000))[0] == 413
    assert server.left() == []


def test_uploads_that_are_refused(server):
    job = server.create()
    assert server.put(job, "../../evil.onnx", b"x") in (400, 404)
    assert server.put(job, "..", b"x") in (400, 404)
    assert server.put(job, "m.onnx", b"x", side="second") == 404
    assert server.put(job, "m.onnx", b"x", side="..") in (400, 404)
    assert server.put("nonsense", "m.onnx", b"x") == 404
    assert server.ask("POST", f"jobs/{job}/start")[0] == 400
    assert server.left() == []


def test_an_upload_that_breaks_off_leaves_nothing(server):
    job = server.create()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(server.head_of_upload(job))
        time.sleep(0.2)
    end = time.monotonic() + 10
    while server.left() and time.monotonic() < end:
        time.sleep(0.02)
    assert server.left() == []


def test_only_this_machine_is_answered(server):
    """A server on all addresses would answer on every address of the loopback network."""
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", server.port))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_the_server_and_leave_nothing(tmp_path, name):
    """In the middle of a run; `running` looks for what is left."""
    with running(tmp_path / "files") as server:
        job = server.create(bench=True)
        server.put(job, TRAIN.name, TRAIN.read_bytes())
        server.json("POST", f"jobs/{job}/start")
        server.until(job, ("running",))
        server.process.send_signal(getattr(signal, name))
        assert server.process.wait(30) == 0
    assert children_that_work_in(tmp_path) == []


def test_a_run_ends_with_a_server_that_was_killed(tmp_path):
    with running(tmp_path / "files") as server:
        job = server.create(bench=True)
        server.put(job, TRAIN.name, TRAIN.read_bytes())
        server.json("POST", f"jobs/{job}/start")
        server.until(job, ("running",))
        time.sleep(1)  # the process has begun to read
        server.process.kill()
        server.process.wait(30)
    end = time.monotonic() + 20
    while children_that_work_in(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert children_that_work_in(tmp_path) == []


def test_what_a_killed_server_left_goes_when_another_begins(tmp_path):
    """But not what a server uses that still runs."""
    files = tmp_path / "files"
    with running(files) as server:
        server.put(server.create(), TRAIN.name, TRAIN.read_bytes())
        server.process.kill()
        server.process.wait(30)
    (left,) = files.iterdir()
    os.utime(left, (0, 0))
    with running(files) as first:
        assert not left.exists()
        (used,) = files.iterdir()
        job = first.create()
        os.utime(used, (0, 0))
        other = subprocess.Popen(
            [sys.executable, "-m", "onnx_repfuse", "serve", "--port", "0"],
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(files), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        other.stdout.readline()
        assert first.put(job, TRAIN.name, TRAIN.read_bytes()) == 204
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=30)


def children_that_work_in(folder):
    """The processes whose working directory is below a folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            place = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if place.startswith(str(folder)):
            found.append(pid)
    return found


def test_serve_is_a_command_unless_there_is_such_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--help"]) == 0
    assert "--time-limit SECONDS" in capsys.readouterr().out
    (tmp_path / "serve").write_bytes(small_model().SerializeToString())
    assert main(["serve", "-o", "out.onnx", "--no-check"]) == 0
    assert (tmp_path / "out.onnx").exists()


def test_help_names_the_command(capsys):
    assert main(["--help"]) == 0
    assert "onnx-repfuse serve" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--port", "70000"], ["--max-size", "0"], ["--time-limit", "x"], ["model.onnx"]]
)
def test_wrong_usage(words, capsys):
    assert main(["serve", *words]) == 2
    assert re.fullmatch(r"onnx-repfuse: error: .*\n", capsys.readouterr().err)


def test_a_port_that_is_taken(server, capsys):
    assert main(["serve", "--port", str(server.port)]) == 2
    assert f"port {server.port} is not available" in capsys.readouterr().err


def test_without_a_folder_for_temporary_files(monkeypatch, capsys):
    def refuse(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    assert main(["serve", "--port", "0"]) == 2
    assert "no folder for temporary files: No usable" in capsys.readouterr().err


def test_a_signal_during_an_upload_ends_the_server(lasting, tmp_path):
    with running(tmp_path / "files") as server:
        assert server.token != lasting.token
        job = server.create()
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(server.head_of_upload(job))
        end = time.monotonic() + 10
        while not server.left() and time.monotonic() < end:
            time.sleep(0.02)
        assert server.left()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        connection.close()


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(serve_command, "_NEEDED", ("starlette", "no_such_package"))
    assert main(["serve"]) == 2
    assert "serve needs no_such_package: pip install 'onnx-repfuse[serve]'" in capsys.readouterr().err
