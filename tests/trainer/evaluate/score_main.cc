// Scores lines of LongBench's prediction format for the parity test: one JSON object a line on standard input, with
// "task", "pred", "answers" and "all_classes"; one number a line on standard output.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/trainer/evaluate/longbench_tasks.h"
#include "worker/trainer/evaluate/text_words.h"

int main() {
  using longspan::trainer::LongBenchTasks;
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto document = nlohmann::json::parse(line);
    const auto task = document.at("task").get<std::string>();
    if (task == "lower") {
      std::printf("%s\n",
                  nlohmann::json(longspan::trainer::LowerCase(document.at("pred").get<std::string>())).dump().c_str());
      continue;
    }
    longspan::trainer::LongBenchExample example;
    document.at("answers").get_to(example.answers);
    if (document.at("all_classes").is_array()) document.at("all_classes").get_to(example.all_classes);
    std::printf("%.17g\n", ScoreOf(LongBenchTasks().at(task), example, document.at("pred").get<std::string>()));
  }
}
