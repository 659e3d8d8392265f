"""Classes by the path that files of earlier versions name them by, and where they are now."""

MOVED = {
    "flm.algos.duo.Duo": "flm.duo.duo.Duo",
    "flm.algos.duo_distill.DuoDistill": "flm.duo.duo_distill.DuoDistill",
    "flm.algos.flm_distill.FLMDistill": "flm.two_stage.flm_distill.FLMDistill",
    "flm.algos.flm_distill_second.FLMDistillSecond": "flm.two_stage.flm_distill_second.FLMDistillSecond",
    "flm.algos.flow_lm.FlowLM": "flm.golf.flow_lm.FlowLM",
    "flm.algos.kl_flow.KLFlow": "flm.kl_flow.kl_flow.KLFlow",
    "flm.algos.kl_flow_map.KLFlowMap": "flm.kl_flow.kl_flow_map.KLFlowMap",
    "flm.algos.native_flow.NativeFlow": "flm.golf.native_flow.NativeFlow",
    "flm.data.chat.Chats": "flm.qwen.chat.Chats",
    "flm.data.corpora.hub_pairs.HubPairCorpus": "flm.conditional.hub_pairs.HubPairCorpus",
    "flm.data.corpora.text8.Text8Normaliser": "flm.data.corpora.detokenisers.Text8Normaliser",
    "flm.data.corpora.token_shards.TokenShardCorpus": "flm.golf.shard_corpus.TokenShardCorpus",
    "flm.data.examples.Texts": "flm.qwen.examples.Texts",
    "flm.data.mixture.MixtureCorpus": "flm.qwen.mixture.MixtureCorpus",
    "flm.data.sentencepiece_tokenizer.SentencePieceTokenizer": "flm.data.sentencepiece.SentencePieceTokenizer",
    "flm.models.flow_encoder.FlowEncoder": "flm.golf.flow_encoder.FlowEncoder",
    "flm.models.flow_encoder.PostNormBlock": "flm.golf.flow_encoder.PostNormBlock",
    "flm.models.golf.GolfBlock": "flm.golf.transformer.GolfBlock",
    "flm.models.golf.GolfTransformer": "flm.golf.transformer.GolfTransformer",
    "flm.models.golf_attention.GolfAttention": "flm.golf.attention.GolfAttention",
    "flm.models.golf_parts.BigramTable": "flm.golf.parts.BigramTable",
    "flm.models.golf_parts.LeakySquareMLP": "flm.golf.parts.LeakySquareMLP",
    "flm.models.golf_parts.SmearGate": "flm.golf.parts.SmearGate",
    "flm.models.modeling_flow_qwen3.TimeEmbedding": "flm.qwen.modeling_flow_qwen3.TimeEmbedding",
    "flm.models.native_flow_matcher.NativeFlowMatcher": "flm.golf.native_flow_matcher.NativeFlowMatcher",
    "flm.models.qwen.QwenBackbone": "flm.qwen.backbone.QwenBackbone",
    "flm.paths.geodesic.Geodesic": "flm.kl_flow.geodesic.Geodesic",
    "flm.paths.geodesic.GeodesicClock": "flm.kl_flow.geodesic.GeodesicClock",
    "flm.training.adamw.AdamW": "flm.training.optimizers.AdamW",
    "flm.training.annealing.AttentionAnnealing": "flm.qwen.annealing.AttentionAnnealing",
    "flm.training.epochs.SourceEpochs": "flm.qwen.callbacks.SourceEpochs",
    "flm.training.forecast.Forecast": "flm.qwen.callbacks.Forecast",
    "flm.training.gradient_norms.GradientNorms": "flm.qwen.callbacks.GradientNorms",
    "flm.training.grouped_adamw.GroupedAdamW": "flm.qwen.grouped_adamw.GroupedAdamW",
    "flm.training.muon.MuonWithAdamW": "flm.training.optimizers.MuonWithAdamW",
    "flm.training.samples.SampleEvery": "flm.training.generation.SampleEvery",
}


def current(target: str) -> str:
    """The path of today for a `_target_` of any day."""
    return MOVED.get(target, target)
