#include <csignal>
#include <string>
#include <vector>

#include "client/client.h"

int main(int argc, char** argv) {
  // `longspan list | head` ends with the pipe; a write to it is no reason to die in the middle of a call.
  std::signal(SIGPIPE, SIG_IGN);
  return longspan::client::RunClient(std::vector<std::string>(argv + 1, argv + argc),
                                     longspan::client::ProcessEnvironment());
}
