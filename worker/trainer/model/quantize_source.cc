#include "worker/trainer/model/quantize_source.h"

#include <map>

namespace longspan::trainer {

QuantizeSource QuantizeSourceOf(const ModelConfig& config, const AdaptableModel& model, const BaseTensors& base) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (TensorShape& tensor : BaseTensorShapes(config)) shapes[tensor.name] = std::move(tensor.shape);
  QuantizeSource source;
  for (const std::string& name : model.linear_names) {
    const std::vector<int64_t>& shape = shapes.at(name + ".weight");
    source.modules.push_back({name, shape[0], shape[1]});
  }
  source.read = [&base](const std::string& module) { return base.Read(module + ".weight"); };
  source.let_go = [&base](const std::string& module) { base.LetGo(module + ".weight"); };
  for (const std::string& path : base.paths()) source.files.emplace_back(path);
  return source;
}

}  // namespace longspan::trainer
