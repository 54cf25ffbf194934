import pytest
import torch
from torch import nn

from neighbor_grpo.models.placement import on_device, on_device_in_turn

ELSEWHERE = torch.device("meta")  # a second device that every machine has; weights do not come back from it


class Encoder(nn.Module):
    """Says where it is sent, and where it finds its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.log = []

    def to(self, device):
        self.log.append(str(device))
        return self

    def forward(self, x, mask=None):
        self.log.append(("forward", x.device.type, mask.device.type))
        return x


def test_encoders_visit_the_device_one_at_a_time_with_their_inputs():
    first, second = Encoder(), Encoder()
    x = torch.zeros(2)
    with on_device_in_turn([first, second], ELSEWHERE):
        assert first.log == second.log == []
        assert first(x, mask=x).is_meta
        assert first.log == ["meta", ("forward", "meta", "meta"), "cpu"] and second.log == []
        second(x, mask=x)
        assert second.log == first.log
    assert not first(x, mask=x).is_meta


def test_a_module_leaves_the_device_also_after_an_error():
    module = Encoder()
    with pytest.raises(RuntimeError), on_device(module, ELSEWHERE):
        raise RuntimeError
    assert module.log == ["meta", "cpu"]
