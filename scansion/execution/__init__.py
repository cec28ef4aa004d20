"""How a training step is computed: the same maths as the dense form, without work the mask or the activation saves."""
