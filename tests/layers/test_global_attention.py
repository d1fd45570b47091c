import torch

from saccade.layers import GlobalAttention, resize_bias_table


def test_against_its_definition():
    torch.manual_seed(0)
    layer = GlobalAttention(12, 3, grid=(3, 4)).double()
    torch.nn.init.normal_(layer.rpb)
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).reshape(2, 12, 3, 3, 4).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / 2
    for query in range(12):
        for key in range(12):
            rows, columns = key // 4 - query // 4, key % 4 - query % 4
            logits[:, :, query, key] += layer.rpb[:, rows + 2, columns + 3]
    expected = layer.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 4, 12))
    torch.testing.assert_close(layer(x), expected)


def test_table_of_another_size():
    table = torch.randn(2, 27, 27)
    assert resize_bias_table(table, (27, 27)) is table
    for size in [(1, 1), (13, 27), (47, 5)]:
        resized = resize_bias_table(table, size)
        assert resized.shape == (2, *size)
        # The entry of a token with itself stays in the centre; where both are odd it is a sample point.
        middle = resized[:, size[0] // 2, size[1] // 2]
        torch.testing.assert_close(middle, table[:, 13, 13], atol=1e-5, rtol=1e-5)


def test_set_grid_equals_resampling_at_each_call():
    layer = GlobalAttention(8, 2, grid=4)
    x = torch.randn(1, 6, 3, 8)
    before = layer(x)
    layer.set_grid((6, 3))
    assert layer.rpb.shape == (2, 11, 5)
    assert layer.rpb.requires_grad
    torch.testing.assert_close(layer(x), before)
