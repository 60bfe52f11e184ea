"""The text of model cards, as a Jinja template. `model_cards/TEMPLATE.md` is a copy; `make_recipes.py` writes it."""

from __future__ import annotations


TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}
{% if recipe %}
> **This is a recipe, not a model.** No training was run for this card; there are no results. It says how one would
> train such a model with `structure_aligned`. The card of a trained model is written by the training itself.
{% elif not finished %}
> **A checkpoint of a training that was not finished** when this card was written, at step {{ step }}.
{% endif %}
A protein language model ({{ family }}) post-trained with `structure_aligned` so that it knows 3D structure while it
reads only a sequence. Three tasks are learnt together: masked language modelling, prediction of each residue's
Foldseek 3Di token from the sequence (physical level), and a contrastive alignment of each residue's representation
with that of a frozen protein graph neural network, pGNN (latent level). The method is that of Chen et al.,
[Structure-Aligned Protein Language Model](https://arxiv.org/abs/2505.16896); this is an independent implementation.

{{ table(about) }}

## How to use

{{ snippet }}

{{ usage }}

## {{ 'How one would train it' if recipe else 'How it was trained' }}
{% if recipe %}
{{ recipe }}
{% else %}
### Run

{{ table(run) }}

### Data

{{ data }}

### Arguments

The main training arguments, and all others that differ from their defaults.

{{ arguments }}

### Versions

{{ versions }}
{% endif %}
## Results

{{ results }}

## Limits

{{ limits }}

## Licence

{{ licence }}

## Citation

{{ citation }}
"""

CITATIONS = {
    "method": """\
@article{chen2025structure,
  title   = {Structure-Aligned Protein Language Model},
  author  = {Chen, Can and Heurtel-Depeiges, David and Vernon, Robert M. and Langmead, Christopher James and
             Bengio, Yoshua and Fournier, Quentin},
  journal = {arXiv preprint arXiv:2505.16896},
  year    = {2025}
}""",
    "esm": """\
@article{lin2023evolutionary,
  title   = {Evolutionary-scale prediction of atomic-level protein structure with a language model},
  author  = {Lin, Zeming and Akin, Halil and Rao, Roshan and Hie, Brian and Zhu, Zhongkai and Lu, Wenting and others},
  journal = {Science},
  volume  = {379},
  number  = {6637},
  pages   = {1123--1130},
  year    = {2023},
  doi     = {10.1126/science.ade2574}
}""",
    "AMPLIFY": """\
@article{fournier2024protein,
  title   = {Protein Language Models: Is Scaling Necessary?},
  author  = {Fournier, Quentin and Vernon, Robert M. and van der Sloot, Almer and Schulz, Benjamin and
             Chandar, Sarath and Langmead, Christopher James},
  journal = {bioRxiv},
  year    = {2024},
  doi     = {10.1101/2024.09.23.614603}
}""",
    "GearNetModel": """\
@inproceedings{zhang2023protein,
  title     = {Protein Representation Learning by Geometric Structure Pretraining},
  author    = {Zhang, Zuobai and Xu, Minghao and Jamasb, Arian and Chenthamarakshan, Vijil and Lozano, Aurelie and
               Das, Payel and Tang, Jian},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}""",
    "ProteinMPNNEncoder": """\
@article{dauparas2022robust,
  title   = {Robust deep learning-based protein sequence design using {ProteinMPNN}},
  author  = {Dauparas, Justas and Anishchenko, Ivan and Bennett, Nathaniel and others},
  journal = {Science},
  volume  = {378},
  number  = {6615},
  pages   = {49--56},
  year    = {2022},
  doi     = {10.1126/science.add2187}
}""",
    "Foldseek": """\
@article{vankempen2024fast,
  title   = {Fast and accurate protein structure search with {Foldseek}},
  author  = {van Kempen, Michel and Kim, Stephanie S. and Tumescheit, Charlotte and others},
  journal = {Nature Biotechnology},
  volume  = {42},
  pages   = {243--246},
  year    = {2024},
  doi     = {10.1038/s41587-023-01773-0}
}""",
}
"""BibTeX of the method, of each family and pGNN, and of the 3Di alphabet."""
