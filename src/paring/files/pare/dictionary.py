"""The preset dictionary of the header's deflate stream: what headers are made of, most frequent last (see FORMAT.md)."""

from __future__ import annotations

_TEXT = (
    "GraphNet,graph,example,inputs,gone,version,float64float16bfloat16int32int8uint8bool"
    "ConvTranspose2dConv1dConv3dPReLUInstanceNorm2dSyncBatchNormGroupNormLayerNormBatchNorm1dEmbeddingIdentity"
    "SelectLinear.readsencoder.decoder.transformer.blocks.attention.query.key.value.proj.mlp.norm1.norm2.embed.head"
    "features.classifier.downsample.shortcut.layer1.0.layer2.0.layer3.0.layer4.0.conv1.conv2.bn1.bn2.fc1.fc2.fc3."
    '{"manifest":{"modules":{"conv1":"Conv2d","conv2":"Conv2d","bn1":"BatchNorm2d","fc1":"Linear","fc2":"Linear",'
    '"fc3":"Linear"},"ties":{},"version":1},"sections":[{"length":10000,"side":1000,"tensors":['
    '{"dtype":"int64","kind":"raw","name":".num_batches_tracked","shape":[]},'
    '{"half":true,"kind":"raw","name":".running_mean","shape":[64]},'
    '{"half":true,"kind":"raw","name":".running_var","shape":[128]},'
    '{"kind":"planes","name":".weight","planes":[false,false,false,true],"shape":[512,256,3,3]},'
    '{"kind":"planes","name":"1.weight","planes":[false,false,false,true],"shape":[512,784]},'
    '{"axis":1,"classes":2,"half":true,"kind":"table","name":"2.weight","shape":[300,100],"static":true,"values":3},'
    '{"axis":1,"half":true,"kind":"mixed","levels":"rows","name":"conv1.weight","shape":[64,1,5,5],"values":2},'
    '{"half":true,"kind":"raw","name":"conv1.bias","shape":[20]},'
    '{"axis":1,"half":true,"kind":"mixed","levels":"grid","name":"fc1.weight","shape":[300,784],"values":16},'
    '{"half":true,"kind":"table","levels":"grid","name":"fc1.bias","shape":[300],"values":255},'
    '{"axis":1,"half":true,"kind":"mixed","name":"fc2.weight","shape":[100,300],"values":8},'
    '{"half":true,"kind":"raw","name":"fc2.bias","shape":[100]},'
    '{"half":true,"kind":"table","levels":"grid","name":"fc3.weight","shape":[10,100],"values":5},'
    '{"half":true,"kind":"raw","name":"fc3.bias","shape":[10]}]}]}'
)
DICTIONARY = _TEXT.encode()
