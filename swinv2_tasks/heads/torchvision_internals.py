"""What is used of torchvision beyond its public interface, and nowhere else.

``tests/test_fences.py`` names each private member that is gone, and holds pyproject.toml's bounds of torchvision.
"""

from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder

__all__ = ["BalancedPositiveNegativeSampler", "BoxCoder"]
