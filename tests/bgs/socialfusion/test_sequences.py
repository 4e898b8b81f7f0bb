import pytest

from bgs.socialfusion.components import byte_tokenizer
from bgs.socialfusion.config import ModelConfig, TrainConfig
from bgs.socialfusion.sequences import Prompter
from bgs.socialfusion.tasks import MARKER, TASKS


def test_prompts_without_a_template():
    tokenizer = byte_tokenizer()
    prompter = Prompter(tokenizer)
    prompt = prompter.prompt("gaze")
    assert tokenizer.decode(prompt.before) == "<bos>Where does the marked person look?\n"
    assert tokenizer.decode(prompt.after) == "\nAnswer:"
    answers = [tokenizer.decode(answer) for answer in prompter.answers("relation")]
    assert answers[0] == " friends<eos>" and answers[-1] == " no relation<eos>"


def test_prompts_in_a_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}[assistant]"
    prompter = Prompter(tokenizer)
    prompt = prompter.prompt("gaze")
    assert tokenizer.decode(prompt.before) == "[user]Where does the marked person look?\n"
    assert tokenizer.decode(prompt.after) == "<eos>[assistant]"
    assert tokenizer.decode(prompter.answers("looking_at_me")[1]) == "yes<eos>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(ValueError, match="chat template turns a prompt"):
        Prompter(tokenizer)


def test_no_answer_begins_another():
    """Else their probabilities would not be of disjoint events."""
    prompter = Prompter(byte_tokenizer())
    for task in TASKS.values():
        assert task.prompt.count(MARKER) == 1
        answers = prompter.answers(task.name)
        assert len(set(answers)) == len(task.classes)
        for one in answers:
            assert not any(one != other and other[: len(one)] == one for other in answers)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ModelConfig, {"rank": 0}, "model.rank: 0"),
        (ModelConfig, {"alpha": 0.0}, "model.alpha"),
        (ModelConfig, {"dropout": 1.0}, "model.dropout"),
        (ModelConfig, {"connector_width": 0}, "model.connector_width"),
        (TrainConfig, {"steps": 0}, "steps: 0; expected at least 1"),
        (TrainConfig, {"synthetic": 3}, "synthetic: 3"),
        (TrainConfig, {"temperature": 0.0}, "temperature"),
        (TrainConfig, {"warmup": 1.5}, "warmup"),
        (TrainConfig, {"precision": "fp16"}, "fp16 is not offered"),
        (TrainConfig, {"test": "a.jsonl"}, "test: given without train"),
        (TrainConfig, {"tasks": ["mood"]}, "unknown mood"),
    ],
)
def test_settings_that_make_no_sense(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
