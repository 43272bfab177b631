// longspan completion: scripts for shells, written from the commands themselves.
#include <fmt/format.h>

#include <algorithm>

#include "client/command.h"

namespace longspan::client {
namespace {

struct CompletionOptions {
  std::string shell;
  const CLI::App* app = nullptr;
};

struct Word {
  std::string word;
  std::string description;
};

std::vector<const CLI::App*> CommandsOf(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<Word> FlagsOf(const CLI::App& app) {
  std::vector<Word> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back({"--" + name, option->get_description()});
  }
  return flags;
}

std::vector<Word> CommandWords(const CLI::App& app) {
  std::vector<Word> words;
  for (const CLI::App* command : CommandsOf(app)) words.push_back({command->get_name(), command->get_description()});
  return words;
}

// Of a command and of those below it.
std::vector<Word> AllFlagsOf(const CLI::App& command) {
  std::vector<Word> flags = FlagsOf(command);
  for (const CLI::App* below : CommandsOf(command)) {
    for (const Word& flag : FlagsOf(*below)) {
      const auto same = [&](const Word& known) { return known.word == flag.word; };
      if (std::none_of(flags.begin(), flags.end(), same)) flags.push_back(flag);
    }
  }
  return flags;
}

std::string Joined(const std::vector<Word>& words) {
  std::string text;
  for (const Word& word : words) text += (text.empty() ? "" : " ") + word.word;
  return text;
}

std::string Bash(const CLI::App& app) {
  std::string cases;
  for (const CLI::App* command : CommandsOf(app)) {
    const std::string below = Joined(CommandWords(*command));
    cases += fmt::format("    {}) words=\"{}{}{}\" ;;\n", command->get_name(), below, below.empty() ? "" : " ",
                         Joined(AllFlagsOf(*command)));
  }
  return fmt::format(R"(# bash completion of longspan; put `source <(longspan completion bash)` into ~/.bashrc
_longspan() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} command= words= i
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${{COMP_WORDS[i]}} != -* ]] && {{ command=${{COMP_WORDS[i]}}; break; }}
  done
  case $command in
    "") words="{} {}" ;;
{}  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ $current != -* && -n $command ]] && COMPREPLY+=($(compgen -f -- "$current"))
}}
complete -o filenames -F _longspan longspan
)",
                     Joined(CommandWords(app)), Joined(FlagsOf(app)), cases);
}

// A text within single quotes of a shell.
std::string Quoted(std::string text) {
  for (size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 4) text.replace(at, 1, "'\\''");
  return "'" + text + "'";
}

// "name[description]" of zsh's _describe and _arguments, where ':' and brackets mean something.
std::string ZshText(std::string text) {
  for (const char special : {':', '[', ']'}) std::replace(text.begin(), text.end(), special, ' ');
  return text;
}

std::string Zsh(const CLI::App& app) {
  std::string commands, cases;
  for (const CLI::App* command : CommandsOf(app)) {
    commands += "    " + Quoted(command->get_name() + ":" + ZshText(command->get_description())) + "\n";
    std::string flags;
    for (const Word& flag : AllFlagsOf(*command))
      flags += " " + Quoted(flag.word + "[" + ZshText(flag.description) + "]");
    const std::string below = Joined(CommandWords(*command));
    if (!below.empty()) flags += fmt::format(" '1:command:({})'", below);
    cases += fmt::format("    {}) _arguments -s{} '*:file:_files' ;;\n", command->get_name(), flags);
  }
  return fmt::format(R"(#compdef longspan
# zsh completion of longspan; put `source <(longspan completion zsh)` into ~/.zshrc
_longspan() {{
  local -a commands=(
{}  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  ((CURRENT--))
  case $command in
{}  esac
}}
compdef _longspan longspan
)",
                     commands, cases);
}

std::string Fish(const CLI::App& app) {
  std::string text = "# fish completion of longspan; put `longspan completion fish | source` into config.fish\n";
  for (const Word& word : CommandWords(app)) {
    text += fmt::format("complete -c longspan -n __fish_use_subcommand -f -a {} -d {}\n", word.word,
                        Quoted(word.description));
  }
  for (const CLI::App* command : CommandsOf(app)) {
    for (const Word& below : CommandWords(*command)) {
      text += fmt::format("complete -c longspan -n '__fish_seen_subcommand_from {}' -f -a {} -d {}\n",
                          command->get_name(), below.word, Quoted(below.description));
    }
    for (const Word& flag : AllFlagsOf(*command)) {
      text += fmt::format("complete -c longspan -n '__fish_seen_subcommand_from {}' -l {} -d {}\n", command->get_name(),
                          flag.word.substr(2), Quoted(flag.description));
    }
  }
  return text;
}

int Completion(const Context& context, const CompletionOptions& options) {
  context.out() << (options.shell == "bash"  ? Bash(*options.app)
                    : options.shell == "zsh" ? Zsh(*options.app)
                                             : Fish(*options.app));
  return kExitSucceeded;
}

}  // namespace

void AddCompletion(CLI::App& app, Context& context) {
  auto options = std::make_shared<CompletionOptions>();
  options->app = &app;
  CLI::App* command = AddCommand(app, context, "completion", "Completion script for a shell", options, &Completion);
  command->add_option("SHELL", options->shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
}

}  // namespace longspan::client
