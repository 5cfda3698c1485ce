import re

from dgnet_keras.__main__ import main


def test_list_is_a_table_of_counted_variants(capsys):
    main(["list", "--family", "mobilenet_v2"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["variant", "parameters", "MACs"]
    row = next(row.split() for row in rows if row.startswith("mobilenetv2_100"))
    assert row[1:4] == ["3,507,343", "301,438,408", "31"]
    assert row[4] == "0.071%"


def test_list_pretrained_shows_the_weights_that_fit_a_family(capsys):
    main(["list", "--pretrained", "--family", "mobilenet_v2"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["weights", "top-1", "pixels", "license"]
    assert rows[1].split() == ["timm/mobilenetv2_100.ra_in1k", "72.91%", "224", "apache-2.0"]
    assert [row for row in rows if row.startswith("timm/")] == rows[:3]


def test_info_shows_stages_and_counts(capsys):
    main(["info", "resnet20_cifar", "--num-classes", "10"])
    output = capsys.readouterr().out
    assert "images: 32 x 32 x 3, classes: 10" in output
    assert re.search(r"stage2 +3 +6 +16 x 16 x 32", output)
    assert "parameters: 273,164" in output
