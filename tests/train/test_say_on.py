import io

from rich.console import Console

from distilflax.train.progress import say_on


def test_a_path_is_said_whole_and_as_it_is():
    sentence = "written: runs/cranfield [v2]/[/INST]/:smile:/" + "long/" * 30
    output = io.StringIO()
    say_on(Console(file=output, width=40, force_terminal=True))(sentence)
    assert output.getvalue() == f"{sentence}\n"
