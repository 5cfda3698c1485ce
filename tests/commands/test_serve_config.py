import pytest

from dgnet_keras.__main__ import main


@pytest.fixture
def birds(tmp_path):
    """A folder of two versions."""
    for version in "12":
        (tmp_path / "birds" / version).mkdir(parents=True)
        (tmp_path / "birds" / version / "saved_model.pb").touch()
    return tmp_path / "birds"


def test_serve_config_writes_the_servers_files(birds, tmp_path, capsys):
    folder, output = str(birds), str(tmp_path / "serving")
    options = ["--versions", "1", "2", "--label", "stable=1"]
    main(["serve-config", folder, "--output", output, *options])
    text = (tmp_path / "serving" / "models.config").read_text()
    assert 'name: "birds"' in text
    assert 'key: "stable" value: 1' in text
    assert "docker compose --file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="already"):
        main(["serve-config", folder, "--output", output])


def test_mistakes_are_named(birds, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty")], "must hold a version"),
        ([str(birds), "--label", "a=1", "--label", "a=2"], "names one version"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["serve-config", *arguments])
