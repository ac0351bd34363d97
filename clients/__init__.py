"""The clients' wing: JAX trainers, models, tasks and attacks.

Names are imported when they are first used: ``import clients`` does not import JAX.
"""

from typing import TYPE_CHECKING

from fl_plugins.lazy_names import lazy_names

if TYPE_CHECKING:
    from .attacks.backdoor import Backdoor
    from .attacks.constant import Constant
    from .attacks.free_rider import FreeRider
    from .attacks.gaussian_noise import GaussianNoise
    from .attacks.inner_product_manipulation import InnerProductManipulation
    from .attacks.label_flip import LabelFlip
    from .attacks.little_is_enough import LittleIsEnough
    from .attacks.mimic import Mimic
    from .attacks.min_max import MinMax, MinSum
    from .attacks.non_finite import NonFinite
    from .attacks.sign_flip import SignFlip
    from .attacks.sybil import Sybil
    from .attacks.zero import Zero
    from .compilation_cache import enable_compilation_cache
    from .dp_sgd import DPSupervised
    from .fast_convolutions import fast_convolutions
    from .layers import Conv, conv_general_dilated, max_pool_2x2
    from .losses import accuracy, softmax_cross_entropy, squared_error
    from .models import linen_model, nnx_model
    from .partitioned import Partitioned
    from .supervised import Supervised
    from .tasks.breast_cancer import breast_cancer
    from .tasks.digits import digits
    from .tasks.flwr_dataset import flwr_dataset
    from .tasks.mnist10k import mnist10k
    from .tasks.shakespeare import shakespeare

__all__ = [
    "Backdoor",
    "Constant",
    "Conv",
    "DPSupervised",
    "FreeRider",
    "GaussianNoise",
    "InnerProductManipulation",
    "LabelFlip",
    "LittleIsEnough",
    "Mimic",
    "MinMax",
    "MinSum",
    "NonFinite",
    "Partitioned",
    "SignFlip",
    "Supervised",
    "Sybil",
    "Zero",
    "accuracy",
    "breast_cancer",
    "conv_general_dilated",
    "digits",
    "enable_compilation_cache",
    "fast_convolutions",
    "flwr_dataset",
    "linen_model",
    "max_pool_2x2",
    "mnist10k",
    "nnx_model",
    "shakespeare",
    "softmax_cross_entropy",
    "squared_error",
]

_MODULES = {
    "Backdoor": "attacks.backdoor",
    "Constant": "attacks.constant",
    "Conv": "layers",
    "DPSupervised": "dp_sgd",
    "FreeRider": "attacks.free_rider",
    "GaussianNoise": "attacks.gaussian_noise",
    "InnerProductManipulation": "attacks.inner_product_manipulation",
    "LabelFlip": "attacks.label_flip",
    "LittleIsEnough": "attacks.little_is_enough",
    "Mimic": "attacks.mimic",
    "MinMax": "attacks.min_max",
    "MinSum": "attacks.min_max",
    "NonFinite": "attacks.non_finite",
    "Partitioned": "partitioned",
    "SignFlip": "attacks.sign_flip",
    "Supervised": "supervised",
    "Sybil": "attacks.sybil",
    "Zero": "attacks.zero",
    "accuracy": "losses",
    "breast_cancer": "tasks.breast_cancer",
    "conv_general_dilated": "layers",
    "digits": "tasks.digits",
    "enable_compilation_cache": "compilation_cache",
    "fast_convolutions": "fast_convolutions",
    "flwr_dataset": "tasks.flwr_dataset",
    "linen_model": "models",
    "max_pool_2x2": "layers",
    "mnist10k": "tasks.mnist10k",
    "nnx_model": "models",
    "shakespeare": "tasks.shakespeare",
    "softmax_cross_entropy": "losses",
    "squared_error": "losses",
}

__getattr__ = lazy_names(__name__, _MODULES)[0]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
