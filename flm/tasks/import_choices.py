"""The keys of `eval` that say what a published checkpoint does not."""

from omegaconf import DictConfig

from flm.checkpoints.imported import ImportChoices


def import_choices(config: DictConfig) -> ImportChoices:
    wanted = config.eval
    return ImportChoices(
        imported_as=wanted.imported_as,
        imported_base_path=wanted.imported_base_path,
        imported_ema=wanted.imported_ema,
        tokenizer_name_or_path=wanted.tokenizer_name_or_path,
        length=wanted.length,
        output_softcap=wanted.output_softcap,
        attention_softcap=wanted.attention_softcap,
    )
