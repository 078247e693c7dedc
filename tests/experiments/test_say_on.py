import io

from rich.console import Console

from experiments import command


def test_a_path_is_said_whole_and_as_it_is():
    sentence = "written: runs/cranfield [v2]/[/INST]/:smile:/" + "long/" * 30
    output = io.StringIO()
    command.say_on(Console(file=output, width=40, force_terminal=True))(sentence)
    assert output.getvalue() == f"{sentence}\n"
