def pack(model, smallest=2): raise NotImplementedError
