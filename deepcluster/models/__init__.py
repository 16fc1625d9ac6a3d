"""Backbones (convnet, AlexNet, ResNet18), their fixed front end, and heads; `models.build` is the way in."""
