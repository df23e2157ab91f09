"""Makes the Honeybee model known to the Auto classes of transformers, by being imported."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from model.configuration import HoneybeeConfig
from model.modeling import HoneybeeForConditionalGeneration
from model.processing import HoneybeeImageProcessor, HoneybeeProcessor

AutoConfig.register("honeybee", HoneybeeConfig)
AutoModelForImageTextToText.register(HoneybeeConfig, HoneybeeForConditionalGeneration)
AutoImageProcessor.register(HoneybeeConfig, image_processor_classes={"pil": HoneybeeImageProcessor})
AutoProcessor.register(HoneybeeConfig, HoneybeeProcessor)

__all__ = ["HoneybeeConfig", "HoneybeeForConditionalGeneration", "HoneybeeImageProcessor", "HoneybeeProcessor"]
