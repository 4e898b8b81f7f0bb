import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Qwen2Config, Qwen2ForCausalLM

from bgs.socialfusion import SocialFusion
from bgs.socialfusion.components import byte_tokenizer
from bgs.socialfusion.config import ModelConfig
from bgs.socialfusion.data import BOXES
from bgs.socialfusion.sequences import attention_mask, lay_out
from bgs.socialfusion.tasks import GAZE, TASKS


def test_shapes(model, batch):
    patches = model.encode(batch.pixels)
    assert patches.shape == (len(batch), model.patches, 64)
    assert model.project(patches, batch.masks).shape == (len(batch), model.patches, 64)
    scores = model.score(batch)
    for task, classes, gaze in zip(batch.tasks, scores.classes, scores.gaze, strict=True):
        if task == GAZE:
            assert classes is None and gaze.shape == (64, 64)
            torch.testing.assert_close(gaze.sum(), torch.tensor(1.0))
        else:
            assert gaze is None and classes.shape == (len(TASKS[task].classes),)
            assert classes.exp().sum() < 1
    stages = model.stages(batch)
    assert stages.names == ["encoder", "connector", "llm.0", "llm.1", "llm.2"]
    assert all(states.shape[:2] == (len(batch), model.patches) for states in stages.states)


def test_boxes_are_masks_times_embeddings(model, batch):
    patches = model.encode(batch.pixels)
    masks = torch.zeros(len(batch), BOXES, model.patches)
    masks[0, 0, 3] = masks[0, 1, 5] = masks[0, :, 7] = 1
    added = model.project(patches, masks) - model.connector(patches)
    expected = torch.zeros_like(added)
    expected[0, 3], expected[0, 5], expected[0, 7] = model.boxes[0], model.boxes[1], model.boxes.sum(0)
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=0)


def test_only_what_is_meant_to_learns(model, batch):
    model.train()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    model.losses(batch).mean().backward()
    for name, parameter in model.named_parameters():
        own = name.startswith(("connector.", "gaze.")) or name == "boxes" or ".lora_" in name
        assert parameter.requires_grad == own, name
        if own:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # softmax is blind to a number added everywhere
            assert parameter.grad.any() or name == "gaze.linear.bias", name
        else:
            assert parameter.grad is None, name
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not model.vision.training and model.language.training


def brute_force(model, batch, row, answer):
    """Log-likelihood of one answer, by one forward pass of the whole model for each of its tokens."""
    prompt = model.prompter.prompt(batch.tasks[row])
    llm = model.language.get_base_model()
    embed = llm.get_input_embeddings()
    image = model.project(model.encode(batch.pixels[row : row + 1]), batch.masks[row : row + 1])[0]
    total = 0.0
    for k, token in enumerate(answer):
        parts = [embed(torch.tensor(prompt.before)), image, embed(torch.tensor((*prompt.after, *answer[:k])))]
        embedded = torch.cat(parts)[None]
        length, first = embedded.shape[1], len(prompt.before)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen[first : first + model.patches, first : first + model.patches] = True
        logits = llm(inputs_embeds=embedded, attention_mask=seen[None, None], use_cache=False).logits
        total += logits[0, -1].log_softmax(-1)[token].item()
    return total


@torch.no_grad()
def test_scores_equal_a_loop(model, batch):
    scores = model.score(batch)
    losses = model.losses(batch)
    for row, task in enumerate(batch.tasks):
        if task == GAZE:
            continue
        answers = model.prompter.answers(task)
        for k in {0, len(answers) - 1, int(batch.labels[row])}:
            expected = brute_force(model, batch, row, answers[k])
            assert abs(scores.classes[row][k].item() - expected) < 2e-4 * abs(expected)
        assert abs(losses[row].item() + scores.classes[row][batch.labels[row]].item()) < 2e-4 * losses[row].item()


@torch.no_grad()
def test_padding_and_company_change_nothing(model, batch):
    losses, scores = model.losses(batch), model.score(batch)
    torch.testing.assert_close(model.losses(batch, padding=9), losses, rtol=1e-5, atol=1e-5)
    padded = model.score(batch, padding=9)
    for row in range(len(batch)):
        parts = (getattr(batch, name)[row : row + 1] for name in ("pixels", "masks", "labels", "heat_maps"))
        one = type(batch)((batch.tasks[row],), *parts)
        alone = model.score(one)
        torch.testing.assert_close(model.losses(one)[0], losses[row], rtol=1e-5, atol=1e-5)
        for which in ("classes", "gaze"):
            together = getattr(scores, which)[row]
            if together is not None:
                torch.testing.assert_close(getattr(alone, which)[0], together, rtol=1e-5, atol=1e-4)
                torch.testing.assert_close(getattr(padded, which)[row], together, rtol=1e-5, atol=1e-4)


def test_attention_mask_by_hand():
    model_prompt = type("P", (), {"before": (1,), "after": (2,)})
    sequences = lay_out([model_prompt, model_prompt], [(3,), ()], patches=2, pad=0)
    assert sequences.ids.tolist() == [[1, 0, 0, 2, 3], [1, 0, 0, 2, 0]]
    assert sequences.lengths.tolist() == [5, 4]
    both = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    found = attention_mask(sequences, bidirectional=True).int()
    assert found[0, 0].tolist() == both
    both[4][4] = 0
    assert found[1, 0].tolist() == both
    causal = attention_mask(sequences, bidirectional=False)[0, 0]
    assert torch.equal(causal, torch.ones(5, 5, dtype=torch.bool).tril())


@torch.no_grad()
def test_causal_images_equal_the_plain_language_model(examples):
    from bgs.socialfusion.data import collate

    model = SocialFusion.from_config(ModelConfig(vision="tiny", llm="tiny", image_attention="causal"))
    batch = collate([next(e for e in examples if e.task == "expression")], model.preprocess, model.grid)
    prompt, answer = model.prompter.prompt("expression"), model.prompter.answers("expression")[int(batch.labels[0])]
    llm = model.language.get_base_model()
    embed = llm.get_input_embeddings()
    image = model.project(model.encode(batch.pixels), batch.masks)[0]
    tokens = torch.tensor((*prompt.after, *answer))
    embedded = torch.cat([embed(torch.tensor(prompt.before)), image, embed(tokens)])[None]
    logits = llm(inputs_embeds=embedded).logits[0, -len(answer) - 1 : -1]
    expected = nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    torch.testing.assert_close(model.losses(batch)[0], expected, rtol=1e-5, atol=1e-5)


def test_models_from_folders(tmp_path, examples):
    """A CLIP with both towers, and a language model of another architecture with tied embeddings."""
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    clip = CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": 99, "eos_token_id": 2, "bos_token_id": 1},
            vision_config={**tower, "image_size": 48, "patch_size": 16},
            projection_dim=16,
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m.content }}<eos>{% endfor %}A:"
    tokenizer.save_pretrained(tmp_path / "llm")
    settings = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(settings).save_pretrained(tmp_path / "llm")
    config = ModelConfig(vision=str(tmp_path / "clip"), llm=str(tmp_path / "llm"), connector_width=40)
    model = SocialFusion.from_config(config)
    assert model.grid == 3 and model.vision.training is False
    for name, value in model.vision.state_dict().items():
        assert torch.equal(value, clip.vision_model.state_dict()[name]), name
    from bgs.socialfusion.data import collate

    batch = collate(examples[::9], model.preprocess, model.grid)
    model.losses(batch).mean().backward()
    assert batch.pixels.shape[-2:] == (48, 48)
    model.save(tmp_path / "saved")
    again = SocialFusion.load(tmp_path / "saved")
    assert torch.equal(again.losses(batch), model.losses(batch))
    weight = model.language.get_base_model().get_input_embeddings().weight
    assert not weight.requires_grad and weight.grad is None
