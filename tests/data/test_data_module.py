import lightning
import pytest
import torch

from flm.data.corpora.text import TextCorpus
from flm.data.module import TextDataModule
from flm.data.tokenizers import ByteTokenizer, CharacterTokenizer
from flm.schema import check
from flm.texts.detokenisers import Text8Normaliser


@pytest.fixture
def corpus_path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i}: " + f"some words {i * i} and more. " * 12 for i in range(120)))
    return path


@pytest.fixture
def build(corpus_path, tmp_path):
    def make(wrap="plain", normaliser=None, tokenizer=None, cache_dir=tmp_path / "cache", **options):
        corpus = TextCorpus(corpus_path, valid_fraction=0.2, wrap=wrap, normaliser=normaliser, cache_dir=cache_dir)
        options = {"length": 32, "seed": 7, "global_batch_size": 12, **options}
        return TextDataModule(corpus, tokenizer or ByteTokenizer(), **options)

    return make


def tokens(loader):
    return [batch.tokens for batch in loader]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_batches_do_not_depend_on_workers(build):
    train = [tokens(build(num_workers=n, batch_size=6).train_loader(3, 9)) for n in (0, 1, 2)]
    assert len(train[0]) == 12 and train[0][0].shape == (6, 32)
    assert same(train[0], train[1]) and same(train[0], train[2])
    valid = [tokens(build(num_workers=n, eval_batch_size=5).valid_loader()) for n in (0, 2)]
    assert same(*valid)


def test_starting_later_is_the_rest_of_starting_at_once(build):
    everything = tokens(build(batch_size=4, length=64).train_loader(0, 60))
    blocks = build(length=64).train_blocks()
    assert 60 * 12 > len(blocks)  # the run crosses an epoch
    for start in (1, 17, 59):
        assert same(tokens(build(batch_size=4, length=64).train_loader(start, 60)), everything[3 * start :])
    first_epoch = torch.cat(everything)[: len(blocks)]
    assert sorted(map(tuple, first_epoch.tolist())) == sorted(tuple(block.tolist()) for block in blocks)
    assert not same(tokens(build(batch_size=4, length=64, seed=8).train_loader(0, 2)), everything[:6])


@pytest.mark.parametrize(("world", "batch_size"), [(1, None), (1, 3), (2, 3), (3, None), (4, 1)])
def test_any_share_out_gives_the_same_global_batch(build, world, batch_size):
    reference = torch.stack(tokens(build().train_loader(0, 3)))
    parts = [tokens(build(batch_size=batch_size).train_loader(0, 3, rank, world)) for rank in range(world)]
    accumulation = build(batch_size=batch_size).accumulation(world)
    steps = [
        torch.cat([block for part in parts for block in part[s * accumulation : (s + 1) * accumulation]]) for s in range(3)
    ]
    assert torch.equal(torch.stack(steps), reference)


def test_accumulation(build):
    assert build(batch_size=3).accumulation(2) == 2 and build().accumulation(4) == 1
    for options, world in (({"batch_size": 5}, 1), ({"batch_size": 4}, 2), ({}, 5), ({"batch_size": 24}, 1), ({}, 24)):
        with pytest.raises(ValueError, match=r"loader\.global_batch_size=12 .*loader\.batch_size"):
            build(**options).accumulation(world)
    with pytest.raises(ValueError, match=r"loader\.batch_size must be"):
        check(TextDataModule, {"length": 4, "batch_size": 0}, "loader", ("corpus", "tokenizer"))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_validation_covers_the_split_once(build, world):
    module = build(eval_batch_size=4)
    batches = [list(module.valid_loader(rank, world)) for rank in range(world)]
    assert len({len(part) for part in batches}) == 1
    rows = [
        (tuple(block.tolist()), weight.unique().tolist())
        for part in batches
        for batch in part
        for block, weight in zip(batch.tokens, batch.weight, strict=True)
    ]
    blocks = module.valid_blocks()
    counted = sorted(block for block, weight in rows if weight == [1.0])
    assert counted == sorted(tuple(blocks[i].tolist()) for i in range(len(blocks)))
    assert all(weight in ([0.0], [1.0]) for _, weight in rows)
    assert sum(batch.weight.sum().item() for part in batches for batch in part) == 32 * len(blocks)
    limited = build(max_eval_examples=6, eval_batch_size=4)
    assert [len(batch.tokens) for batch in limited.valid_loader()] == [4, 2]


def test_counts_and_bytes(build):
    for wrap, payload in (("plain", 32), ("bos_eos", 30)):
        module = build(wrap=wrap)
        blocks = module.train_blocks()
        everything = torch.cat([blocks[i] for i in range(len(blocks))])
        assert torch.equal(module.token_counts(), torch.bincount(everything, minlength=257))
        text = list(module.valid_documents())
        size = sum(len(document.encode()) for document in text)
        assert module.bytes_per_token() == pytest.approx(size / (size + len(text)) * payload / 32, rel=1e-12)
        assert (blocks[0][0] == 256) == (wrap == "bos_eos")


def test_text8_characters(build):
    module = build(normaliser=Text8Normaliser(), tokenizer=CharacterTokenizer())
    block = module.tokenizer.decode(module.train_blocks()[0])
    assert set(block.replace("<|end|>", "")) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert module.vocab_size <= 29 and module.tokenizer.vocab_size == len(module.token_counts())


def test_wrong_wrap_is_told(corpus_path):
    with pytest.raises(ValueError, match=r"data\.wrap must be"):
        check(TextCorpus, {"path": str(corpus_path), "wrap": "both"}, "data")


def test_cache_folder_that_cannot_be(build, corpus_path):
    with pytest.raises(ValueError, match=r"data\.cache_dir=.* cannot be written"):
        build(cache_dir=corpus_path / "below").prepare()


def test_without_a_folder_a_temporary_one_serves(build):
    module = build(cache_dir=None)
    module.prepare()
    folder = module.cache.folder
    assert folder.is_dir() and same(tokens(module.train_loader(0, 2)), tokens(build().train_loader(0, 2)))
    module._temporary.cleanup()
    assert not folder.exists()


class Recorder(lightning.LightningModule):
    """Keeps what it is fed; one parameter, so that there are optimiser steps to count."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated, self.batches = [], 0, []

    def training_step(self, batch, index):
        self.seen.append(batch.tokens.clone())
        self.batches.append(index)
        return self.weight * batch.weight.mean()

    def validation_step(self, batch, index):
        self.validated += len(batch.tokens)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_interrupted_training_sees_what_uninterrupted_training_sees(build, tmp_path, recwarn):
    def fit(max_steps, resume=None):
        module, data = Recorder(), build(batch_size=4)
        trainer = lightning.Trainer(
            max_steps=max_steps,
            accumulate_grad_batches=data.accumulation(1),
            val_check_interval=9,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        return module, trainer

    whole, _ = fit(10)
    first, _ = fit(4)
    rest, trainer = fit(10, tmp_path / "4.ckpt")
    assert trainer.global_step == 10 and len(whole.seen) == 30 and len(rest.seen) == 18
    assert same(first.seen + rest.seen, whole.seen)
    assert first.batches + rest.batches == whole.batches
    assert whole.validated > 0
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


def test_endless_training_is_refused(build):
    data = build()
    data.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    with pytest.raises(ValueError, match=r"trainer\.max_steps must be set"):
        data.train_dataloader()


@pytest.mark.parametrize("limit,expected", [(2, 8), (1.0, None), (0.5, None), (100, None)])
def test_a_limit_on_validation_means_the_same_examples_for_any_number_of_processes(build, limit, expected):
    found = []
    for world in (1, 2, 3):
        data = build(eval_batch_size=4)
        data.valid_limit = limit
        batches = [batch for rank in range(world) for batch in data.valid_loader(rank, world)]
        found.append(sorted(n for b in batches for n in b.numbers[b.weight.sum(1) > 0].tolist()))
    count = len(build().valid_blocks())
    share = limit * 4 if isinstance(limit, int) else -(-count * limit // 1)
    assert found[0] == found[1] == found[2] == list(range(int(min(count, share))))
    assert expected is None or len(found[0]) == expected
