// The math library's names, which from here on mean the functions of emulator_math.h, in namespace std, too.
#pragma once
namespace std {
using ::emulator_acos;
using ::emulator_acosf;
using ::emulator_acosh;
using ::emulator_acoshf;
using ::emulator_asin;
using ::emulator_asinf;
using ::emulator_asinh;
using ::emulator_asinhf;
using ::emulator_atan;
using ::emulator_atan2;
using ::emulator_atan2f;
using ::emulator_atanf;
using ::emulator_atanh;
using ::emulator_atanhf;
using ::emulator_cbrt;
using ::emulator_cbrtf;
using ::emulator_cos;
using ::emulator_cosf;
using ::emulator_cosh;
using ::emulator_coshf;
using ::emulator_erf;
using ::emulator_erfc;
using ::emulator_erfcf;
using ::emulator_erff;
using ::emulator_exp;
using ::emulator_exp10;
using ::emulator_exp10f;
using ::emulator_exp2;
using ::emulator_exp2f;
using ::emulator_expf;
using ::emulator_expm1;
using ::emulator_expm1f;
using ::emulator_hypot;
using ::emulator_hypotf;
using ::emulator_lgamma;
using ::emulator_lgammaf;
using ::emulator_log;
using ::emulator_log10;
using ::emulator_log10f;
using ::emulator_log1p;
using ::emulator_log1pf;
using ::emulator_log2;
using ::emulator_log2f;
using ::emulator_logf;
using ::emulator_pow;
using ::emulator_powf;
using ::emulator_sin;
using ::emulator_sincos;
using ::emulator_sincosf;
using ::emulator_sinf;
using ::emulator_sinh;
using ::emulator_sinhf;
using ::emulator_tan;
using ::emulator_tanf;
using ::emulator_tanh;
using ::emulator_tanhf;
using ::emulator_tgamma;
using ::emulator_tgammaf;
}  // namespace std
#define acos emulator_acos
#define acosh emulator_acosh
#define asin emulator_asin
#define asinh emulator_asinh
#define atan emulator_atan
#define atan2 emulator_atan2
#define atanh emulator_atanh
#define cbrt emulator_cbrt
#define cos emulator_cos
#define cosh emulator_cosh
#define erf emulator_erf
#define erfc emulator_erfc
#define exp emulator_exp
#define exp10 emulator_exp10
#define exp2 emulator_exp2
#define expm1 emulator_expm1
#define hypot emulator_hypot
#define lgamma emulator_lgamma
#define log emulator_log
#define log10 emulator_log10
#define log1p emulator_log1p
#define log2 emulator_log2
#define pow emulator_pow
#define sin emulator_sin
#define sincos emulator_sincos
#define sinh emulator_sinh
#define tan emulator_tan
#define tanh emulator_tanh
#define tgamma emulator_tgamma
#define acosf emulator_acosf
#define acoshf emulator_acoshf
#define asinf emulator_asinf
#define asinhf emulator_asinhf
#define atanf emulator_atanf
#define atan2f emulator_atan2f
#define atanhf emulator_atanhf
#define cbrtf emulator_cbrtf
#define cosf emulator_cosf
#define coshf emulator_coshf
#define cospif emulator_cospif
#define erff emulator_erff
#define erfcf emulator_erfcf
#define expf emulator_expf
#define exp10f emulator_exp10f
#define exp2f emulator_exp2f
#define expm1f emulator_expm1f
#define hypotf emulator_hypotf
#define lgammaf emulator_lgammaf
#define logf emulator_logf
#define log10f emulator_log10f
#define log1pf emulator_log1pf
#define normcdff emulator_normcdff
#define powf emulator_powf
#define rcbrtf emulator_rcbrtf
#define rhypotf emulator_rhypotf
#define sinf emulator_sinf
#define sincosf emulator_sincosf
#define sinhf emulator_sinhf
#define sinpif emulator_sinpif
#define tanf emulator_tanf
#define tgammaf emulator_tgammaf
#define __fdividef emulator_fast_divide
