#include "client/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace longspan::client {
namespace {

constexpr int kAxisColumns = 10;  // "  12.345 |"

// A canvas of dots behind characters of one or of two by four dots.
class Canvas {
 public:
  Canvas(int columns, int rows, bool utf8)
      : columns_(columns),
        rows_(rows),
        per_column_(utf8 ? 2 : 1),
        per_row_(utf8 ? 4 : 1),
        cells_(static_cast<size_t>(columns * rows)) {}

  int width() const { return columns_ * per_column_; }
  int height() const { return rows_ * per_row_; }

  // x from the left, y from the top.
  void Set(int x, int y) {
    static constexpr unsigned char kDots[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    unsigned char& cell = cells_[static_cast<size_t>(y / per_row_ * columns_ + x / per_column_)];
    cell |= per_column_ == 1 ? 1 : kDots[y % 4][x % 2];
  }

  std::string Row(int row) const {
    std::string text;
    for (int column = 0; column < columns_; ++column) {
      const unsigned char cell = cells_[static_cast<size_t>(row * columns_ + column)];
      if (cell == 0) {
        text += ' ';
      } else if (per_column_ == 1) {
        text += '*';
      } else {  // U+2800 + cell
        text += {'\xe2', static_cast<char>(0xa0 | (cell >> 6)), static_cast<char>(0x80 | (cell & 0x3f))};
      }
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  }

 private:
  int columns_, rows_, per_column_, per_row_;
  std::vector<unsigned char> cells_;
};

struct Frame {
  double x_min, x_max, y_min, y_max;
};

Frame FrameOf(const std::vector<CurvePoint>& points) {
  Frame frame{points.front().x, points.back().x, points.front().y, points.front().y};
  for (const CurvePoint& point : points) {
    frame.y_min = std::min(frame.y_min, point.y);
    frame.y_max = std::max(frame.y_max, point.y);
  }
  if (frame.x_max <= frame.x_min) frame.x_max = frame.x_min + 1;
  if (frame.y_max - frame.y_min < 1e-9 * std::max(1.0, std::abs(frame.y_max))) {  // a level line lies in the middle
    frame.y_min -= 0.5;
    frame.y_max += 0.5;
  }
  return frame;
}

void DrawLine(int x0, int y0, int x1, int y1, Canvas& canvas) {
  const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
  for (int i = 0; i <= steps; ++i) canvas.Set(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps);
}

void DrawPoints(const std::vector<CurvePoint>& points, const Frame& frame, Canvas& canvas) {
  const auto x_of = [&](const CurvePoint& point) {
    return static_cast<int>(std::lround((point.x - frame.x_min) / (frame.x_max - frame.x_min) * (canvas.width() - 1)));
  };
  const auto y_of = [&](const CurvePoint& point) {
    return static_cast<int>(std::lround((frame.y_max - point.y) / (frame.y_max - frame.y_min) * (canvas.height() - 1)));
  };
  for (size_t i = 0; i + 1 < points.size(); ++i) {
    DrawLine(x_of(points[i]), y_of(points[i]), x_of(points[i + 1]), y_of(points[i + 1]), canvas);
  }
}

}  // namespace

std::string DrawCurve(const std::string& title, const std::string& x_name, const std::vector<CurvePoint>& all_points,
                      const CurveShape& shape) {
  std::vector<CurvePoint> points;
  std::copy_if(all_points.begin(), all_points.end(), std::back_inserter(points),
               [](const CurvePoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); });
  if (points.size() < 2) return "";
  const int columns = std::max(10, shape.width - kAxisColumns);
  const int rows = std::max(3, shape.height);
  const Frame frame = FrameOf(points);
  Canvas canvas(columns, rows, shape.utf8);
  DrawPoints(points, frame, canvas);

  const char* bar = shape.utf8 ? "│" : "|";
  std::string text = title + "\n";
  for (int row = 0; row < rows; ++row) {
    const bool labelled = row == 0 || row == rows - 1 || row == (rows - 1) / 2;
    const double value = frame.y_max - (frame.y_max - frame.y_min) * row / (rows - 1);
    text += labelled ? fmt::format("{:>8.4g} ", value) : std::string(9, ' ');
    text += bar + canvas.Row(row) + "\n";
  }
  std::string line;
  for (int i = 0; i < columns; ++i) line += shape.utf8 ? "─" : "-";
  text += std::string(9, ' ') + (shape.utf8 ? "└" : "+") + line + "\n";
  const std::string first = fmt::format("{} {:g}", x_name, frame.x_min), last = fmt::format("{:g}", frame.x_max);
  const int gap = std::max(1, columns - static_cast<int>(first.size() + last.size()));
  return text + std::string(kAxisColumns, ' ') + first + std::string(static_cast<size_t>(gap), ' ') + last + "\n";
}

}  // namespace longspan::client
