"""V-JEPA 2.1, which transformers does not have: its encoder in transformers' idiom, and the backbone around it.

Importing this package registers `model_type` "vjepa21" with transformers' AutoConfig and AutoModel, and the fused form
of its attention with `bgs_kernels.accelerate`.
"""

from transformers import AutoConfig, AutoModel

from bgs.models.vjepa21.backbone import VJEPA21Backbone
from bgs.models.vjepa21.configuration import VJEPA21Config
from bgs.models.vjepa21.fused import FusedVJEPA21Attention
from bgs.models.vjepa21.modeling import VJEPA21Attention, VJEPA21Model, VJEPA21Output
from bgs_kernels import register_family

__all__ = ["VJEPA21Backbone", "VJEPA21Config", "VJEPA21Model", "VJEPA21Output"]

AutoConfig.register(VJEPA21Config.model_type, VJEPA21Config, exist_ok=True)
AutoModel.register(VJEPA21Config, VJEPA21Model, exist_ok=True)
register_family(VJEPA21Attention, FusedVJEPA21Attention)
