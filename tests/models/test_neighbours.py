"""The map of neighbours against a convolution and against masks."""

import torch

from flm.models.attention import Neighbours, document_mask


def test_it_is_a_convolution_with_a_residual():
    torch.manual_seed(0)
    layer, x = Neighbours(5, 2).double(), torch.randn(3, 9, 5, dtype=torch.float64)
    weight = layer.weight.permute(1, 2, 0)  # (out, in, distance)
    dense = x + torch.nn.functional.conv1d(x.transpose(1, 2), weight, padding=2).transpose(1, 2)
    torch.testing.assert_close(layer(x, None), dense)
    torch.testing.assert_close(layer(x[:, :2], None), x[:, :2] + _by_hand(layer, x[:, :2]))  # shorter than it reaches


def _by_hand(layer, x):
    total = torch.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            if abs(j - i) <= layer.reach:
                total[:, i] += x[:, j] @ layer.weight[j - i + layer.reach].T
    return total


def test_documents_of_a_row_do_not_see_each_other():
    torch.manual_seed(1)
    layer, x = Neighbours(4, 2), torch.randn(2, 7, 4)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, -1], [0, 0, 1, 1, 1, 2, 2]])
    got = layer(x, document_mask(documents))
    for row in range(2):
        for document in documents[row].unique():
            here = documents[row] == document
            torch.testing.assert_close(got[row, here], layer(x[row, here][None], None)[0])
    torch.testing.assert_close(layer(x, torch.ones(7, 7, dtype=torch.bool)[None, None]), layer(x, None))
