"""Recognise padding with one value per channel that a file spells out in many nodes, and lift it as one operator.

Diverse Branch Block (DBB) and ECBSR pad what a 1x1 Conv and its BatchNormalization give, not with zeros but with
what these two make of zeros: one value per channel. Neither torch nor ONNX has an operator for it. Authors write

    y = F.pad(x, (1, 1, 1, 1)); y[:, :, :1, :] = v; y[:, :, -1:, :] = v; y[:, :, :, :1] = v; y[:, :, :, -1:] = v

or concatenate rows and columns, or assign x into a tensor full of v, or choose by a mask. Exporters write an
assignment as Transpose, ScatterND, Transpose, with indices from Shape, Gather, Range, Slice and Unsqueeze and with
updates from Equal, Where and Expand: torch's legacy exporter needs some 180 nodes for one padding.

All these nodes only move values. So we compute, without knowing the height and width, which value a tensor holds at
each position: a constant, or an element of another tensor, the source (here x):

     position   0    1 .. n   n+1
        0       v    v .. v    v              v  v  v         3 x 3 cells: one before, one between
      1 .. n    v    x .. x    v      ->      v  x  v         and one after, along both axes
       n+1      v    v .. v    v              v  v  v

* `symbolic_tensor`: the cells, and what padding, concatenation and assignment do to them;
* `propagate`: the cells of a node's output from those of its inputs, operator by operator;
* `scatter_ranges`: which positions a ScatterND assigns to;
* `symbolic_shape`: sizes that the file computes with Shape and friends, as far as they can be proved;
* `match`: if the output of a node is one whole source with one value per channel all around it, the node is lifted
  as a padding of the source, together with the nodes in between.
"""
