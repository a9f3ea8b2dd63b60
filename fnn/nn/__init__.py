"""A layer is two functions: ``name_init(key, ...)`` and ``name(params, x)``. The wing holds:

- layers: dense, embed, dropout, mlp; convolutions and pooling; norms; recurrent layers, and
  functions that run a step or a layer over sequences; attention and a transformer block
- activations and initializers
- losses for each example, accuracy, penalties; `fnn.nn.metrics`
- keys of rows: split, row_keys; `fnn.nn.params`, functions of parameter trees
"""

from fnn._base import row_keys, split
from fnn.nn import metrics, params
from fnn.nn._activations import ACTIVATIONS, Activation, leaky_relu, relu, sigmoid, softmax, tanh
from fnn.nn._attention import (
    attention,
    attention_init,
    gelu,
    transformer_block,
    transformer_block_init,
)
from fnn.nn._conv import conv, conv_init, conv_transpose, conv_transpose_init
from fnn.nn._dense import dense, dense_init
from fnn.nn._dropout import dropout, spatial_dropout
from fnn.nn._embed import embed, embed_init
from fnn.nn._initializers import (
    Initializer,
    fans,
    gain,
    glorot_normal,
    glorot_uniform,
    kaiming_normal,
    kaiming_uniform,
    orthogonal,
)
from fnn.nn._losses import (
    absolute_error,
    accuracy,
    binary_cross_entropy,
    check_labels,
    cross_entropy,
    huber,
    squared_error,
)
from fnn.nn._mlp import mlp, mlp_init
from fnn.nn._norms import (
    batch_norm,
    batch_norm_init,
    group_norm,
    group_norm_init,
    instance_norm,
    instance_norm_init,
    layer_norm,
    layer_norm_init,
    rms_norm,
    rms_norm_init,
)
from fnn.nn._penalties import elastic_net, l1, l2
from fnn.nn._pooling import avg_pool, global_avg_pool, global_max_pool, max_pool
from fnn.nn._recurrent import (
    gru,
    gru_carry,
    gru_init,
    gru_step,
    lstm,
    lstm_carry,
    lstm_init,
    lstm_step,
    rnn,
    rnn_carry,
    rnn_init,
    rnn_step,
)
from fnn.nn._rotary import rotary
from fnn.nn._sequences import bidirectional, stacked, stacked_init, unroll
from fnn.nn._weight_norm import weight_norm, weight_norm_init

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Initializer",
    "absolute_error",
    "accuracy",
    "attention",
    "attention_init",
    "avg_pool",
    "batch_norm",
    "batch_norm_init",
    "bidirectional",
    "binary_cross_entropy",
    "check_labels",
    "conv",
    "conv_init",
    "conv_transpose",
    "conv_transpose_init",
    "cross_entropy",
    "dense",
    "dense_init",
    "dropout",
    "elastic_net",
    "embed",
    "embed_init",
    "fans",
    "gain",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "glorot_normal",
    "glorot_uniform",
    "group_norm",
    "group_norm_init",
    "gru",
    "gru_carry",
    "gru_init",
    "gru_step",
    "huber",
    "instance_norm",
    "instance_norm_init",
    "kaiming_normal",
    "kaiming_uniform",
    "l1",
    "l2",
    "layer_norm",
    "layer_norm_init",
    "leaky_relu",
    "lstm",
    "lstm_carry",
    "lstm_init",
    "lstm_step",
    "max_pool",
    "metrics",
    "mlp",
    "mlp_init",
    "orthogonal",
    "params",
    "relu",
    "rms_norm",
    "rms_norm_init",
    "rnn",
    "rnn_carry",
    "rnn_init",
    "rnn_step",
    "rotary",
    "row_keys",
    "sigmoid",
    "softmax",
    "spatial_dropout",
    "split",
    "squared_error",
    "stacked",
    "stacked_init",
    "tanh",
    "transformer_block",
    "transformer_block_init",
    "unroll",
    "weight_norm",
    "weight_norm_init",
]
