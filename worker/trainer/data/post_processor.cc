#include "worker/trainer/data/post_processor.h"

#include <fmt/format.h>

namespace longspan::trainer {
namespace {

void AppendSpecialToken(const JsonPlace& part, const JsonPlace& processor, std::vector<TokenId>& ids) {
  const std::string name = part.At("id").String();
  const JsonPlace known = processor.At("special_tokens");
  const auto token = known.Find(name);
  if (!token) {
    part.Fail(fmt::format("{} is \"{}\", which {} lacks", part.At("id").path(), name, known.path()));
  }
  for (const JsonPlace& id : token->At("ids").Elements()) ids.push_back(static_cast<TokenId>(id.Unsigned(kTokenIdMax)));
}

PostProcessor ReadTemplate(const JsonPlace& processor) {
  PostProcessor result;
  const JsonPlace single = processor.At("single");
  int texts = 0;
  for (const JsonPlace& part : single.Elements()) {
    if (const auto token = part.Find("SpecialToken")) {
      AppendSpecialToken(*token, processor, texts > 0 ? result.suffix : result.prefix);
      continue;
    }
    const JsonPlace text = part.At("Sequence").At("id");
    if (text.String() != "A") text.Fail(fmt::format("{} is {}; for a single text it is A", text.path(), text.String()));
    ++texts;
  }
  if (texts != 1) single.Fail(fmt::format("{} has the text {} times; once is needed", single.path(), texts));
  return result;
}

}  // namespace

PostProcessor PostProcessor::Parse(const std::optional<JsonPlace>& description) {
  if (!description) return {};
  const std::string type = description->Type();
  if (type == "TemplateProcessing") return ReadTemplate(*description);
  if (type == "ByteLevel") return {};  // It trims offsets, which nobody here asks for.
  if (type != "Sequence") {
    description->Fail(
        fmt::format("the post_processor {} ({}) is not supported; TemplateProcessing, ByteLevel and Sequence are", type,
                    description->path()));
  }
  PostProcessor result;
  for (const JsonPlace& member : description->At("processors").Elements()) {
    const PostProcessor outer = Parse(member);
    result.prefix.insert(result.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
    result.suffix.insert(result.suffix.end(), outer.suffix.begin(), outer.suffix.end());
  }
  return result;
}

}  // namespace longspan::trainer
