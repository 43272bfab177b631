#include "worker/trainer/evaluate/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "proto/support/check.h"

namespace longspan::trainer {
namespace {

constexpr int kCellWidth = 64, kCellHeight = 34, kLeft = 92, kTop = 52, kRight = 118, kBottom = 62;
constexpr int kLegendSteps = 20;

std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

struct Colour {
  double red, green, blue;
};

std::string ColourOf(double value) {
  constexpr Colour kRed = {215, 48, 39}, kYellow = {254, 224, 139}, kGreen = {26, 152, 80};
  const double share = std::clamp(value, 0.0, 1.0);
  const Colour& from = share < 0.5 ? kRed : kYellow;
  const Colour& to = share < 0.5 ? kYellow : kGreen;
  const double part = share < 0.5 ? share * 2 : share * 2 - 1;
  const auto mix = [part](double a, double b) { return static_cast<int>(std::lround(a + (b - a) * part)); };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(from.red, to.red), mix(from.green, to.green), mix(from.blue, to.blue));
}

struct TextStyle {
  const char* anchor = "middle";
  int size = 12;
  const char* extra = "";
};

std::string Text(double x, double y, std::string_view text, const TextStyle& style) {
  return fmt::format(R"(<text x="{:.0f}" y="{:.0f}" text-anchor="{}" font-size="{}"{}>{}</text>)"
                     "\n",
                     x, y, style.anchor, style.size, style.extra, Escaped(text));
}

std::string Rectangle(double x, double y, double width, double height, std::string_view fill) {
  return fmt::format(R"(<rect x="{:.0f}" y="{:.1f}" width="{:.0f}" height="{:.1f}" fill="{}"/>)"
                     "\n",
                     x, y, width, height, fill);
}

std::string Legend(int x, int height) {
  std::string svg;
  const double step = static_cast<double>(height) / kLegendSteps;
  for (int i = 0; i < kLegendSteps; ++i) {
    svg += Rectangle(x, kTop + i * step, 16, step + 0.5, ColourOf(1 - (i + 0.5) / kLegendSteps));
  }
  for (const auto& [share, label] : {std::pair{1.0, "100 %"}, {0.5, "50 %"}, {0.0, "0 %"}}) {
    svg += Text(x + 22, kTop + (1 - share) * height + 4, label, {"start", 11});
  }
  return svg;
}

std::string Cell(const HeatMap& map, size_t row, size_t column) {
  const double x = kLeft + static_cast<double>(column) * kCellWidth, y = kTop + static_cast<double>(row) * kCellHeight;
  const std::optional<double>& value = map.values[row][column];
  std::string svg = Rectangle(x, y, kCellWidth - 1, kCellHeight - 1, value ? ColourOf(*value) : "#d0d0d0");
  if (value) svg += Text(x + kCellWidth / 2.0, y + kCellHeight / 2.0 + 4, fmt::format("{:.0f}", *value * 100), {});
  return svg;
}

}  // namespace

std::string DrawHeatMap(const HeatMap& map) {
  CHECK(map.values.size() == map.rows.size());
  const int width = static_cast<int>(map.columns.size()) * kCellWidth;
  const int height = static_cast<int>(map.rows.size()) * kCellHeight;
  const int total_width = kLeft + width + kRight, total_height = kTop + height + kBottom;
  std::string svg = fmt::format(R"(<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" )"
                                R"(viewBox="0 0 {0} {1}" font-family="sans-serif" fill="#202020">)"
                                "\n",
                                total_width, total_height);
  svg += Rectangle(0, 0, total_width, total_height, "#ffffff");
  svg += Text(kLeft, 28, map.title, {"start", 15, R"( font-weight="bold")"});
  for (size_t row = 0; row < map.rows.size(); ++row) {
    CHECK(map.values[row].size() == map.columns.size());
    svg += Text(kLeft - 8, kTop + (static_cast<double>(row) + 0.5) * kCellHeight + 4, map.rows[row], {"end"});
    for (size_t column = 0; column < map.columns.size(); ++column) svg += Cell(map, row, column);
  }
  for (size_t column = 0; column < map.columns.size(); ++column) {
    svg += Text(kLeft + (static_cast<double>(column) + 0.5) * kCellWidth, kTop + height + 18, map.columns[column], {});
  }
  svg += Text(kLeft + width / 2.0, kTop + height + 44, map.column_label, {"middle", 13});
  const double middle = kTop + height / 2.0;
  svg += fmt::format(
      R"svg(<text transform="translate(24 {:.0f}) rotate(-90)" text-anchor="middle" font-size="13">{}</text>)svg"
      "\n",
      middle, Escaped(map.row_label));
  svg += Legend(kLeft + width + 22, height);
  return svg + "</svg>\n";
}

}  // namespace longspan::trainer
