"""The revision of results is that of the code."""

import subprocess

from benchmarks import environment


def test_the_revision_says_whether_code_was_changed_but_not_whether_results_were(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    results, code = tmp_path / "benchmarks" / "results" / "figures.json", tmp_path / "benchmarks" / "environment.py"
    results.parent.mkdir(parents=True)
    for path in (results, code):
        path.write_text("before")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--no-gpg-sign", "-m", "all")
    monkeypatch.setattr(environment, "__file__", str(code))
    committed = environment.revision()
    assert len(committed) == 10
    results.write_text("after")
    assert environment.revision() == committed
    code.write_text("after")
    assert environment.revision() == committed + "+"
    monkeypatch.setattr(environment, "__file__", str(tmp_path.parent / "nowhere" / "benchmarks" / "environment.py"))
    monkeypatch.setenv("BGS_REVISION", "sent along")
    assert environment.revision() == "sent along"
